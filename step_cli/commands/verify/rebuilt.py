"""What pruned weights of `torch.nn.utils.prune` would be judged as, if saved whole.

The file holds ``weight_orig`` and ``weight_mask``, and the module multiplies them. They
stay unchecked, as a loop may go on with another mask; what their product holds is told.
"""

from collections.abc import Mapping, Sequence

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.axis_rule import AxisRule
from step_cli.nm.count import TensorToCheck, count_tensor
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import DEFAULT_PATTERN
from step_cli.nm.tensor_data import TensorData, values_of
from step_cli.nm.weight_rule import Description
from step_cli.reports import SkippedTensor

REMEDY = "call torch.nn.utils.prune.remove before saving"


def with_rebuilt(
    skipped: Sequence[SkippedTensor], checkpoint: Checkpoint, nm: NMPattern | None
) -> list[SkippedTensor]:
    """The same, with a note on each weight that can be rebuilt exactly."""
    if not any(tensor.reason == "reparametrized" for tensor in skipped):
        return list(skipped)
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    rule = AxisRule(checkpoint.tensors, checkpoint.model_config)
    noted = []
    for tensor in skipped:
        note = None
        if tensor.reason == "reparametrized":
            note = _note(tensor.name, tensors, rule, nm or DEFAULT_PATTERN)
        noted.append(tensor.model_copy(update={"note": note}))
    return noted


def _note(
    name: str, tensors: Mapping[str, NamedTensor], rule: AxisRule, pattern: NMPattern
) -> str | None:
    whole, mask = tensors[name], tensors.get(name.removesuffix("_orig") + "_mask")
    if mask is None or mask.shape != whole.shape or "kind" in (whole.skip, mask.skip):
        return None
    base = name.removesuffix("_orig")
    axis = rule.of(Description(base, whole.dtype, whole.shape)).axis
    spec = NMSpec(pattern, axis)
    if whole.shape[axis] % pattern.m:
        return None
    kept = whole.read().copy()
    kept[values_of(mask.data(), slice(0, len(kept))) == 0] = 0
    counts = count_tensor(TensorToCheck(TensorData(kept, whole.dtype), spec))
    holds = "breaks" if counts.violations else "holds"
    product = f"{name.rpartition('.')[2]} * {base.rpartition('.')[2]}_mask"
    return f"{product} {holds} {pattern} along axis {axis}; {REMEDY}"
