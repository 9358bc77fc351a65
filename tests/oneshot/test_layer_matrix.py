"""Every layer type as a matrix: times its rows it is what the layer computes."""

import pytest
import torch
from torch import nn

from step_cli.nm.tensor_data import Array
from step_cli.oneshot.layer_matrix import LayerMatrix

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
LAYERS = [
    (nn.Linear(8, 6), (3, 8)),
    (nn.Linear(8, 6, bias=False), (2, 3, 8)),
    (Conv1D(6, 8), (2, 3, 8)),
    (nn.Conv1d(8, 6, 3, padding=1), (2, 8, 10)),
    (nn.Conv2d(8, 6, 3), (2, 8, 7, 6)),
    (nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2), (2, 8, 9, 7)),
    (nn.Conv2d(8, 6, 3, padding="same", groups=2), (2, 8, 5, 5)),
    (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), (2, 8, 5, 5)),
    (nn.Conv2d(8, 6, 1), (8, 5, 5)),
    (nn.Conv3d(4, 2, 2), (1, 4, 3, 4, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: str(x))
def test_the_product_is_what_the_layer_computes(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    view = LayerMatrix(layer)
    weight, bias = layer.weight.detach(), layer.bias
    matrix, rows = view.of_weight(weight), view.of_input(x)
    torch.testing.assert_close(view.to_weight(matrix), weight, rtol=0, atol=0)
    products = torch.einsum("prc,poc->rpo", rows, matrix).flatten(1)  # [rows, out]
    expected = layer(x).detach()
    if isinstance(layer, nn.Linear | Conv1D):
        expected = expected.reshape(-1, expected.shape[-1])
    else:
        channels = 1 if expected.dim() == len(layer.kernel_size) + 2 else 0
        expected = expected.movedim(channels, -1).reshape(len(products), -1)
    bias = 0 if bias is None else bias.detach()
    torch.testing.assert_close(products + bias, expected)


def test_groups_of_channels_are_consecutive_columns() -> None:
    conv = nn.Conv2d(8, 2, 3)
    weight = torch.arange(2 * 8 * 9.0).view(2, 8, 3, 3)
    (matrix,) = LayerMatrix(conv).of_weight(weight)
    for tap in range(9):
        group: Array = matrix[1, tap * 8 : tap * 8 + 4].numpy()
        assert (group == weight[1, :4, tap // 3, tap % 3].numpy()).all()


def test_other_modules_do_not_fit() -> None:
    assert not LayerMatrix.fits(nn.ConvTranspose2d(4, 4, 3))
    assert not LayerMatrix.fits(nn.MultiheadAttention(8, 2))
    assert LayerMatrix.fits(Conv1D(4, 4)) and LayerMatrix.fits(nn.Conv2d(4, 4, 3))
