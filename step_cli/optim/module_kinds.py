"""What the type of its module tells of a parameter, whatever it is called.

Which weights are those of products, embeddings, norms or transposed convolutions, along
which axis a product sums, and what a module computes its weight from. The rest, such as
parameters that a module of the user's multiplies by itself, is left to their names.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from step_cli.errors import UsageError
from step_cli.nm.weight_rule import Description, SkipReason, name_reason, uncheckable
from step_cli.optim.backward import CONVOLUTIONS, is_conv1d

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)
# Their `weight` is [out, in, ...].
PRODUCTS = (nn.Linear, nn.Bilinear, *CONVOLUTIONS)
# Each `*weight*` of theirs is [out, in].
SEVERAL_PRODUCTS = (
    nn.MultiheadAttention,
    nn.modules.rnn.RNNBase,
    nn.modules.rnn.RNNCellBase,
)
# How the parameters end from which weight_norm, spectral_norm and prune of torch have
# a module compute its weight.
COMPUTED_FROM = ("_v", "_orig")  # and `_g`, which only scales


def describe(model: nn.Module) -> Iterator[Description]:
    """Each parameter once, and each buffer of packed codes.

    Raises:
        UsageError: A parameter has no shape yet.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: defaultdict[int, list[Description]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if is_lazy(parameter):
            raise UsageError(f"{name} has no shape yet: run the model on a batch first")
        uses[id(parameter)].append(_by_type(modules, _unknown(name, parameter)))
    yield from map(_agreed, uses.values())
    buffers = dict(model.named_buffers())
    names = {*buffers, *(name for name, _ in model.named_parameters())}
    for name, buffer in buffers.items():
        unknown = _unknown(name, buffer)
        if buffer.dim() > 1 and name_reason(unknown, names) == "packed":
            yield replace(unknown, skip="packed")


def stays_dense(module: nn.Module) -> SkipReason | None:
    """Why the weight of a module stays dense, whatever its name; else None."""
    if isinstance(module, TRANSPOSED):
        return "consumer"  # its groups would run along the outputs
    if isinstance(module, TABLES):
        return "embedding"
    return "norm" if isinstance(module, NORMS) else None


def _unknown(name: str, tensor: Tensor) -> Description:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Description(name, dtype, tuple(tensor.shape))


def _agreed(uses: list[Description]) -> Description:
    """What all modules that use a parameter agree on, under its first name."""
    first = uses[0]
    unknown = Description(first.name, first.dtype, first.shape)
    reasons = [use.skip for use in uses if use.skip is not None]
    axes = {use.axis for use in uses if use.axis is not None}
    if axes:  # a table of the user's own kind, tied to a Linear, is told by its name
        by_name = [name_reason(use) for use in uses if use.axis is None]
        reasons += [reason for reason in by_name if reason == "embedding"]
    if reasons:
        return replace(unknown, skip=reasons[0])  # such as a Linear tied to a table
    if len(axes) > 1:
        return replace(unknown, skip="consumer")
    typed = [use for use in uses if use.axis is not None]
    return replace(typed[0], name=first.name) if typed else unknown


def _by_type(modules: Mapping[str, nn.Module], unknown: Description) -> Description:
    """What the type of its module tells of a parameter; names tell the rest."""
    owner, _, own = unknown.name.rpartition(".")
    module, computed = modules[owner], False
    if isinstance(module, ParametrizationList):
        if own == "original0" and hasattr(module, "original1"):
            return unknown  # the magnitude of weight norm
        above, _, own = owner.rpartition(".")
        module, computed = modules[above.rpartition(".")[0]], True
    elif own.endswith(COMPUTED_FROM):
        base = own.rpartition("_")[0]
        # What it computes is then an attribute, and no parameter.
        computed = base not in module._parameters and hasattr(module, base)
        own = base if computed else own
    reason = stays_dense(module)
    if reason is not None:
        return replace(unknown, skip=reason)
    axis = _group_axis(module, own)
    if axis is None:
        # Beside the weight of a product, under whatever name that product has.
        beside = isinstance(module, PRODUCTS) and name_reason(unknown) == "embedding"
        return replace(unknown, skip="name") if beside else unknown
    if computed and len(unknown.shape) > 1:
        return replace(unknown, skip="reparametrized")
    if len(unknown.shape) > 1 and unknown.dtype.startswith("float8"):
        return replace(unknown, skip="dtype")  # no optimizer trains it
    return replace(unknown, axis=axis, is_weight=uncheckable(unknown) is None)


def _group_axis(module: nn.Module, own: str) -> int | None:
    """The axis that a module sums a parameter over; None: its type tells nothing."""
    if isinstance(module, SEVERAL_PRODUCTS):
        return 1 if "weight" in own else None
    if own != "weight":
        return None
    if is_conv1d(module):
        return 0
    return 1 if isinstance(module, PRODUCTS) else None
