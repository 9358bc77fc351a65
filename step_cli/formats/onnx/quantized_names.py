"""The plan of a model that was quantized after it was written."""

from collections.abc import Sequence

from step_cli.formats.checkpoint import NamedTensor
from step_cli.nm.pattern import NMSpec, Plan

SUFFIX = "_quantized"  # that onnxruntime.quantization gives to the codes of a weight


def plan_of_codes(plan: Plan, tensors: Sequence[NamedTensor]) -> tuple[Plan, list[str]]:
    """A plan with the names that its tensors have now, and a note if any changed.

    The quantizer of ONNX Runtime keeps the metadata of a model, but stores the codes of
    a weight under a new name, and those of a Gemm turned around. So the axis is that of
    the product which multiplies by the codes.

    Args:
        plan: As it stands in the file.
        tensors: Those of the file.
    """
    names = {tensor.name for tensor in tensors}
    codes = {one.name: one.axis for one in tensors if one.quantized is not None}
    found, renamed = dict[str, NMSpec](), 0
    for name, spec in plan.items():
        axis = codes.get(name + SUFFIX)
        if name in names or axis is None:
            found[name] = spec
        else:
            found[name + SUFFIX] = NMSpec(spec.pattern, axis)
            renamed += 1
    if not renamed:
        return plan, []
    note = f"its plan is of before it was quantized: {renamed} layers are NAME{SUFFIX}"
    return found, [note]
