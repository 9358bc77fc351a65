"""Print the tables of scale.md: memory per GPU, and what is sent.

Everything follows from the shapes of a model and from what the optimizer keeps:
`tests/test_docs_scale.py` holds the counts against published models, and the bytes
against the tensors of a real optimizer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PAGE = Path(__file__).with_name("scale.md")
Dtype = Literal["fp32", "bf16"]
GIB = 2**30


@dataclass(frozen=True)
class Decoder:
    """The shapes of a decoder-only transformer.

    Attributes:
        name: For the table.
        layers: Blocks.
        width: Of the residual stream.
        vocabulary: Tokens.
        hidden: Width inside a block's feed-forward part.
        positions: Learned position embeddings; 0: rotary ones, as in LLaMA, which has
            gated feed-forward parts, no biases, and an output head of its own.
        key_width: Of keys and of values; default ``width``.
    """

    name: str
    layers: int
    width: int
    vocabulary: int
    hidden: int
    positions: int = 0
    key_width: int = 0

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of one block: what becomes N:M."""
        keys = self.key_width or self.width
        attention = 2 * self.width * self.width + 2 * self.width * keys
        matrices = 2 if self.positions else 3  # a gate is a third
        return attention + matrices * self.width * self.hidden

    @property
    def block(self) -> int:
        """Parameters of one block."""
        if not self.positions:
            return self.block_weights + 2 * self.width  # two norms without a shift
        biases = 5 * self.width + self.hidden
        return self.block_weights + biases + 4 * self.width

    @property
    def sparse(self) -> int:
        """Weights that become N:M; GPT-2's head is its embedding, LLaMA's is none."""
        head = 0 if self.positions else self.vocabulary * self.width
        return self.layers * self.block_weights + head

    @property
    def rest(self) -> int:
        """Parameters outside the blocks: embeddings, head, last norm."""
        if self.positions:
            return (self.vocabulary + self.positions) * self.width + 2 * self.width
        return 2 * self.vocabulary * self.width + self.width

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.block + self.rest


MODELS = (
    Decoder("GPT-2, 125M", 12, 768, 50257, 3072, 1024),
    Decoder("GPT-2 medium, 355M", 24, 1024, 50257, 4096, 1024),
    Decoder("GPT-2 XL, 1.5B", 48, 1600, 50257, 6400, 1024),
    Decoder("LLaMA-2 7B", 32, 4096, 32000, 11008),
    Decoder("LLaMA-2 13B", 40, 5120, 32000, 13824),
    Decoder("LLaMA-2 70B", 80, 8192, 32000, 28672, key_width=1024),
)


def state_bytes(parameters: int, sparse: int, dtype: Dtype, *, switched: bool) -> int:
    """Bytes that parameters, gradients, m, v and dense weights take between steps.

    Args:
        parameters: All of them.
        sparse: Those that become N:M.
        dtype: Of the parameters; m, v and dense weights are fp32 always.
        switched: In the mask-learning phase fp32 weights that are pruned have a dense
            copy; before, they are their own. bf16 parameters have one of all, always.
    """
    own = 4 if dtype == "fp32" else 2
    copies = parameters if dtype == "bf16" else sparse if switched else 0
    return parameters * (own + own + 4 + 4) + 4 * copies


def gpu_bytes(model: Decoder, dtype: Dtype, processes: int) -> int:
    """Bytes on each GPU at the most, without activations and the buffers of libraries.

    With several processes FSDP2 splits the state; what is whole at a time is one block
    with its gradients and the next, fetched ahead, or the rest of the model. While the
    optimizer steps, gradients of bf16 parameters are copied to fp32. DDP: one process.
    """
    own = 4 if dtype == "fp32" else 2
    state = state_bytes(model.parameters, model.sparse, dtype, switched=True)
    stepping = 4 * model.parameters if dtype == "bf16" else 0
    if processes == 1:
        return state + stepping
    computing = own * (2 * max(model.block, model.rest) + model.block)
    return state // processes + max(stepping // processes, computing)


def sent_bytes(parameters: int, kind: Literal["ddp", "fsdp"]) -> int:
    """Bytes each process sends in a step for fp32 gradients, many processes in a ring.

    DDP reduces the gradients: each passes 2 (n - 1) / n of them on, here taken as 2.
    FSDP2 gathers the weights for forward and again for backward, and scatters the sums
    of gradients: 3 times (n - 1) / n.
    """
    return 4 * parameters * (2 if kind == "ddp" else 3)


STEP_BYTES = 5 * 8  # v_l1, v_l2, dv_l1, dv_log and a count, in fp64: one all-reduce


def memory_table() -> Iterator[str]:
    """GiB per GPU; every line of a Markdown table."""
    places = (1, 8, 64)
    heads = [f"{dtype}, {_place(n)}" for dtype in ("fp32", "bf16") for n in places]
    yield "| model | parameters | become 2:4 | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (2 + len(heads))
    for model in MODELS:
        cells = [
            _amount(gpu_bytes(model, dtype, n) / GIB)
            for dtype in ("fp32", "bf16")
            for n in places
        ]
        counts = f"{model.parameters / 1e9:.2f} B | {model.sparse / 1e9:.2f} B"
        yield f"| {model.name} | {counts} | " + " | ".join(cells) + " |"


def traffic_table() -> Iterator[str]:
    """GB that training sends in a step, beside the bytes of STEP."""
    yield "| model | DDP sends | FSDP2 sends | STEP adds under FSDP2 | share |"
    yield "|---|---:|---:|---:|---:|"
    for model in MODELS[2:]:
        ddp, fsdp = (sent_bytes(model.parameters, kind) for kind in ("ddp", "fsdp"))
        share = 2 * STEP_BYTES / fsdp
        yield (
            f"| {model.name} | {ddp / 1e9:.0f} GB | {fsdp / 1e9:.0f} GB | "
            f"{2 * STEP_BYTES} bytes | {share:.0e} |"
        )


def _place(processes: int) -> str:
    return "DDP" if processes == 1 else f"FSDP on {processes}"


def _amount(gib: float) -> str:
    return f"{gib:.1f}" if gib < 100 else f"{gib:.0f}"


def with_tables(page: str) -> str:
    """The page, its tables made anew."""
    tables = {"memory": memory_table(), "traffic": traffic_table()}
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        made = begin + "\n".join(lines) + "\n" + end
        page = re.sub(
            re.escape(begin) + ".*?" + re.escape(end),
            lambda _, made=made: made,
            page,
            flags=re.S,
        )
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
