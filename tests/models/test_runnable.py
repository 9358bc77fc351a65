"""Models whose weights are stored in a narrow type and multiplied in fp32."""

import pytest
import torch
from torch import Tensor, nn

from step_cli.models.runnable import compute_in_fp32


class Casting(nn.Module):
    """Casts to the type that a weight is stored in, as T5, Mamba2 and CLIP do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.one(x.to(self.one.weight.dtype))
        out: Tensor = self.two(input=inner.to(self.two.weight.dtype))
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_that_the_model_casts_to_the_stored_type_are_multiplied_in_fp32(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    model = Casting().to(dtype).eval()
    x = torch.randn(3, 4)
    compute_in_fp32(model)
    found = model(x)
    inner = nn.functional.linear(
        x.to(dtype).float(), model.one.weight.float(), model.one.bias.float()
    )
    expected = nn.functional.linear(
        inner.to(dtype).float(), model.two.weight.float(), model.two.bias.float()
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert model.one.weight.dtype == dtype
