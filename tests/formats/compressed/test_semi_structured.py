import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparse_kernels import stand_in  # noqa: E402
from torch.sparse import SparseSemiStructuredTensor  # noqa: E402
from torch.sparse._semi_structured_conversions import (  # noqa: E402
    _calculate_meta_reordering_scatter_offsets as hardware_order,
)
from torch.sparse._semi_structured_conversions import (  # noqa: E402
    sparse_semi_structured_from_dense_cutlass as torch_compress,
)
from torch.sparse._semi_structured_conversions import (  # noqa: E402
    sparse_semi_structured_to_dense_cutlass as torch_expand,
)

import step_cli  # noqa: E402
from step_cli.errors import InputError  # noqa: E402
from step_cli.formats.checkpoint import NamedTensor  # noqa: E402
from step_cli.formats.compressed.codec import (  # noqa: E402
    Layout,
    kept_values,
    packed_positions,
)
from step_cli.formats.compressed.writer import save_compressed  # noqa: E402
from step_cli.formats.pytorch.arrays import to_array, to_tensor  # noqa: E402
from step_cli.formats.safetensors.writer import save_safetensors  # noqa: E402
from step_cli.nm.pattern import NMPattern, NMSpec  # noqa: E402

PLAN = NMSpec(NMPattern(2, 4), 1)
SHAPE = (64, 256)


def two_four(
    shape: tuple[int, int], dtype: torch.dtype = torch.float16, *, full: bool = True
) -> torch.Tensor:
    """Random weights with two non-zeros in each group of four, or two at most."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(1, 100, shape, generator=generator)
    order = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(-1)
    kept = 2 if full else torch.randint(0, 3, (*order.shape[:2], 1))
    return (weight * (order < kept).reshape(shape)).to(dtype)


def save(path: Path, weight: torch.Tensor) -> Path:
    array = to_array(weight)
    stored = NamedTensor("fc.weight", array.dtype.name, array.shape, lambda: array)
    save_compressed(path, [stored], {"fc.weight": PLAN})
    return path


def our_parts(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept values, and our sparse metadata as words of hardware in its own order."""
    array, layout = to_array(weight), Layout(tuple(weight.shape), PLAN)
    values = np.concatenate([chunk for chunk, _ in kept_values(array, layout)])
    packed = np.concatenate(list(packed_positions(array, layout)))
    word = torch.int32 if weight.dtype == torch.int8 else torch.int16
    words = torch.from_numpy(packed).view(word).reshape(len(weight), -1)
    offsets = hardware_order(*words.shape, word, torch.device("cpu"))
    ordered = torch.empty(words.numel(), dtype=word)
    ordered.scatter_(0, offsets, words.reshape(-1))
    return to_tensor(values).reshape(len(weight), -1), ordered.reshape(words.shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_values_and_metadata_are_those_of_the_hardware_before_reordering(
    dtype: torch.dtype,
) -> None:
    weight = two_four(SHAPE, dtype)
    values, metadata = our_parts(weight)
    their_values, their_metadata = torch_compress(weight)
    assert torch.equal(values, their_values)
    assert torch.equal(metadata, their_metadata)
    assert not torch.equal(metadata, our_parts(weight.flip(0))[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_torch_expands_our_parts_where_groups_hold_less_than_two(
    dtype: torch.dtype,
) -> None:
    """Torch fills such groups with other zeros; what they stand for is the same."""
    weight = two_four(SHAPE, dtype, full=False)
    assert torch.equal(torch_expand(*our_parts(weight)), weight)


def test_on_the_cpu_tensors_are_plain_and_exact(tmp_path: Path) -> None:
    weight = two_four((8, 16))
    state = step_cli.load_compressed(save(tmp_path / "c.safetensors", weight))
    assert list(state) == ["fc.weight"]
    assert type(state["fc.weight"]) is torch.Tensor
    assert torch.equal(state["fc.weight"], weight)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "m.safetensors", {"w": to_array(two_four((8, 16)))})
    with pytest.raises(InputError, match="not written by export --to compressed"):
        step_cli.load_compressed(tmp_path / "m.safetensors")


@pytest.mark.parametrize("multiplies", [True, False])
def test_without_cusparselt_cutlass_is_tried_and_must_multiply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    stand_in(monkeypatch, multiplies=multiplies)
    weight = two_four(SHAPE, torch.bfloat16)
    path = save(tmp_path / "c.safetensors", weight)
    loaded = step_cli.load_compressed(path)["fc.weight"]
    assert isinstance(loaded, SparseSemiStructuredTensor) == multiplies
    if not multiplies:
        assert type(loaded) is torch.Tensor and torch.equal(loaded, weight)
        return
    x = torch.randn(5, SHAPE[1]).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.nn.functional.linear(x, loaded)
    assert torch.equal(found, torch.nn.functional.linear(x, weight))
    layer = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=torch.bfloat16)
    layer.load_state_dict({"weight": loaded}, assign=True)
    assert torch.equal(layer(x), found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(128, 256), (10, 16)])
def test_on_a_gpu_products_equal_the_dense_ones(
    tmp_path: Path, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an Ampere or later GPU")
    weight = two_four(shape, dtype) / 100
    state = step_cli.load_compressed(save(tmp_path / "c.safetensors", weight), "cuda")
    loaded = state["fc.weight"]
    # The small one does not fit the hardware layout, and stays plain.
    assert (type(loaded) is torch.Tensor) == (shape == (10, 16))
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(64, shape[1], generator=generator, device="cuda").to(dtype)
    found = torch.nn.functional.linear(x, loaded)
    expected = torch.nn.functional.linear(x, weight.cuda())
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    apart = (found.double() - expected.double()).abs().max()
    assert apart <= tolerance * expected.double().abs().max().clamp(min=1)
