"""Models whose weights are stored in a narrow type and multiplied in fp32."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from step_cli.formats.open import open_checkpoint
from step_cli.models.runnable import compute_in_fp32, open_model
from step_cli.models.source import model_source


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


def test_attention_of_torch_multiplies_all_its_weights_in_fp32() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).bfloat16().eval()
    wide = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    wide.load_state_dict(attention.state_dict())
    compute_in_fp32(attention)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, x, x)[0], wide(x, x, x)[0])
    assert {value.dtype for value in attention.parameters()} == {torch.bfloat16}


def test_a_model_that_would_change_its_weights_as_it_runs_is_kept_from_it(
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        hidden_size=16, attention_hidden_size=16, intermediate_size=32,
        num_hidden_layers=3, vocab_size=20, rescale_every=1,
    )  # fmt: skip
    model = transformers.RwkvForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    model.config.rescale_every = 0
    numbers = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = model(input_ids=numbers).logits
        checkpoint = open_checkpoint(tmp_path)
        opened = open_model(model_source(None, checkpoint), checkpoint)
        found = opened.model(input_ids=numbers).logits
    for tensor in checkpoint.tensors:
        weight = opened.model.get_parameter(opened.names[tensor.name])
        assert torch.equal(weight, torch.from_numpy(tensor.read().copy()))
    torch.testing.assert_close(found, expected)
