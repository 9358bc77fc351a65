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
# What a verdict rests on

`make docs` writes this page from the tables in the code. How coverage is computed is in
[ci.md](ci.md).

## ONNX

Names play no part: a weight is what one of these products multiplies by. The inputs
are counted from 0; the product sums over the axis called `in`.
"""
THROUGH = """
A product's operand is followed to stored tensors through these operators. They are
initializers, sparse initializers and Constants of every form; functions are followed
with the attributes of their call, bodies of If, Loop and Scan with what enters them.
"""
UNTRACED = """
What reaches a product another way is `untraced`: it counts as not covered, and
`--strict` fails it. So is what these products multiply by, whose stored form is not
known here:
"""
FAMILIES = """
## Kinds of models

If `config.json` has one of these values as its `model_type`, or as that of a part, the
tensors below are weights, stored with these axes; `in` is the group axis. The rows come
from the code of transformers 5.23. Models that are not listed store matrices as
`[out, in]` and experts as `[experts, out, in]`, or are unknown.
"""
MISNAMED = """
And modules whose names do not tell what they are. With the config of these kinds, a
Linear is a weight; an Embedding or positions are skipped as `embedding`, and a
ConvTranspose, whose groups along axis 1 are those of its outputs, as `consumer`. A `*`
is a number. Where it says "even window", a convolution of the same name has an odd one.
"""
LIBRARIES = """
## Libraries with sparse kernels

What `--target` judges by. Inputs and outputs have to be multiples of these numbers.
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
