"""Print coverage.md: the tables behind verdicts, as they are. `make docs` writes it."""

from collections.abc import Iterable, Sequence

from step_cli.formats.onnx.operators import (
    looked_through_rows,
    other_product_rows,
    product_rows,
)
from step_cli.nm.families import family_rows, misnamed_rows
from step_cli.nm.target_table import TARGETS

HEAD = """\
# The tables behind verdicts

`make docs` writes this page from the tables in the code. How coverage is computed is in
[ci.md](ci.md).

## ONNX

Names of tensors are not used: a weight is what one of these operators multiplies by.
The inputs are counted from 0; the product sums over the axis called `in`.
"""
THROUGH = """
From each operand of a product, the graph is followed back to stored tensors through the
operators below. Stored tensors are initializers, sparse initializers and Constants of
every form. Functions are followed with the attributes of their call, and the bodies of
If, Loop and Scan with their inputs.
"""
UNTRACED = """
A stored tensor that reaches a product through another operator is `untraced`: it counts
as not covered, and `--strict` fails it. The same holds for the weights of these
products, whose stored form is not known here:
"""
FAMILIES = """
## Kinds of models

If `config.json` has one of these values as its `model_type`, or as that of a part, the
tensors below are weights, stored with these axes; `in` is the group axis. The rows come
from the code of transformers 5.23. Models that are not listed store matrices as
`[out, in]` and experts as `[experts, out, in]`, or are unknown.
"""
MISNAMED = """
In these kinds of models, the names of some modules do not show what the modules are.
With such a config, a Linear is a weight. An Embedding, or a tensor of positions, is
skipped as `embedding`. A ConvTranspose is skipped as `consumer`, because its groups
along axis 1 are those of its outputs. A `*` stands for a number. "Even window" tells
the module from a convolution of the same name whose window is odd.
"""
LIBRARIES = """
## Libraries with sparse kernels

`--target` judges by this table. Inputs and outputs must be multiples of these numbers.
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
            *_table(("target", "types", "pattern", "inputs", "outputs", ""), kernels),
            "",
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    print(page(), end="")
