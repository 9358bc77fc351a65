"""Print coverage.md: the tables that verdicts are based on. `make docs` writes it."""

from collections.abc import Iterable, Sequence

from step_cli.formats.onnx.operators import (
    looked_through_rows,
    other_product_rows,
    product_rows,
)
from step_cli.nm.families import family_rows, misnamed_rows
from step_cli.nm.target_table import TARGETS

HEAD = """\
# The tables that verdicts are based on

`make docs` generates this page from the tables in the code. [ci.md](ci.md) describes
how coverage is computed.

## ONNX

Names of tensors are not used: a weight is a stored tensor that one of these operators
multiplies by. Inputs are counted from 0. The product sums over the axis `in`.
"""
THROUGH = """
From each operand of a product, the graph is followed back to stored tensors, but only
through the operators below. Stored tensors are initializers, sparse initializers and
Constants of every form. Functions (with the attributes of their call) and the bodies of
If, Loop and Scan are followed too.
"""
UNTRACED = """
If there is another operator between a stored tensor and a product, the tensor is
`untraced`: it counts as not covered, and `--strict` fails. The same holds for the
weights of these products, for which step-cli does not know how weights are stored:
"""
FAMILIES = """
## Kinds of models

The table applies if `config.json`, or one of its sub-configurations, has one of these
values as its `model_type`. Then the tensors below are weights, stored with these axes;
`in` is the group axis. "As stored" marks names in files that transformers changes on
loading; "transposed on loading" marks tensors that it transposes then. The rows come
from the code of transformers 5.23. Models that are not listed are assumed to store
matrices as `[out, in]` and experts as `[experts, out, in]`.
"""
MISNAMED = """
In these kinds of models, the names of some modules do not show their types. With such a
`model_type`, a Linear is a weight. An Embedding, or a tensor of positions, is skipped
as `embedding`. A ConvTranspose is skipped as `consumer`, because groups along its axis
1 would be groups of outputs. A `*` stands for a number. "Even window" means that the
row applies only if the size of the window is even; a convolution of the same name has
an odd one.
"""
LIBRARIES = """
## Libraries with sparse kernels

`--target` uses this table. The numbers of inputs and outputs of a layer must be
multiples of the numbers in the table.
"""


def page() -> str:
    """The page, from the tables themselves."""
    others = ", ".join(f"`{name}` ({domain})" for domain, name in other_product_rows())
    kernels = [
        (
            name,
            ", ".join(sorted(kernel.dtypes)),
            kernel.words,
            str(kernel.inputs),
            str(kernel.outputs),
            "; ".join(text for text in (kernel.doubt, kernel.note) if text),
        )
        for name, target in TARGETS.items()
        for kernel in target.kernels
    ]
    return "\n".join(
        [
            HEAD,
            *_table(("domain", "product", "inputs", "stored as"), product_rows()),
            THROUGH,
            *_table(("domain", "operator", "if"), looked_through_rows()),
            UNTRACED,
            f"{others}.",
            FAMILIES,
            *_table(
                ("model_type", "names end in", "stored as", "group axis", "module"),
                family_rows(),
            ),
            MISNAMED,
            *_table(
                ("class of torch.nn", "model_type", "names end in", "module"),
                misnamed_rows(),
            ),
            LIBRARIES,
            *_table(
                ("target", "types", "pattern", "inputs", "outputs", "note"), kernels
            ),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    print(page(), end="")
