from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import step_cli  # noqa: E402
from step_cli.core.pattern import NMPattern  # noqa: E402
from step_cli.core.plan import LayerPlan  # noqa: E402
from step_cli.errors import InputError  # noqa: E402
from step_cli.formats.checkpoint import NamedTensor  # noqa: E402
from step_cli.formats.compressed import save_compressed  # noqa: E402
from step_cli.formats.safetensors_writer import save_safetensors  # noqa: E402


def two_four(shape: tuple[int, int]) -> np.ndarray:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    weight.reshape(-1, 4)[:, ::2] = 0
    return weight


def save(path: Path, weight: np.ndarray) -> Path:
    tensors = [NamedTensor("fc.weight", "float16", weight.shape, lambda: weight)]
    save_compressed(path, tensors, {"fc.weight": LayerPlan(NMPattern(2, 4), 1)})
    return path


def test_on_the_cpu_tensors_are_plain_and_exact(tmp_path: Path) -> None:
    weight = two_four((8, 16))
    state = step_cli.load_compressed(save(tmp_path / "c.safetensors", weight))
    assert list(state) == ["fc.weight"]
    assert type(state["fc.weight"]) is torch.Tensor
    assert np.array_equal(state["fc.weight"].numpy(), weight)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "m.safetensors", {"w": two_four((8, 16))})
    with pytest.raises(InputError, match="not written by export --to compressed"):
        step_cli.load_compressed(tmp_path / "m.safetensors")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(128, 256), (10, 16)])
def test_on_a_gpu_products_equal_the_dense_ones(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an Ampere or later GPU")
    weight = two_four(shape)
    state = step_cli.load_compressed(save(tmp_path / "c.safetensors", weight), "cuda")
    loaded = state["fc.weight"]
    # The small one does not fit the hardware layout, and stays plain.
    assert (type(loaded) is torch.Tensor) == (shape == (10, 16))
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(64, shape[1], generator=generator, device="cuda").half()
    dense = torch.from_numpy(weight).cuda()
    found = torch.nn.functional.linear(x, loaded)
    expected = torch.nn.functional.linear(x, dense)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)
