"""Linear weights of a loaded model, swapped for semi-structured tensors of torch."""

import copy
from typing import Any

import pytest
import torch
from sparse_kernels import stand_in
from torch import nn
from torch.sparse import SparseSemiStructuredTensor

import step_cli
from step_cli.errors import UsageError
from step_cli.formats.pytorch import semi_structured
from step_cli.integrations.semi_structured import SwapReport


def pruned(model: nn.Module) -> nn.Module:
    """The model with every Linear 2:4, in bfloat16."""
    torch.manual_seed(0)
    model = model.bfloat16().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features % 4 == 0:
            weight = module.weight.data
            weight.mul_(step_cli.nm_mask(weight.abs(), "2:4", axis=1))
    return model


def swapped_names(report: SwapReport) -> list[str]:
    return [weight.name for weight in report.swapped]


def reasons(report: SwapReport) -> dict[str, str]:
    return {weight.name: weight.reason for weight in report.kept}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return pruned(model)


def test_a_model_of_transformers_gives_the_same_numbers_through_sparse_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)
    dense: Any = llama()
    model = copy.deepcopy(dense)
    report = step_cli.to_semi_structured(model, exclude="lm_head.*")
    assert len(report.swapped) == 14
    assert reasons(report) == {
        "model.embed_tokens.weight": "of Embedding, not the weight of a Linear",
        "lm_head.weight": "excluded",
    }
    first = report.swapped[0]
    assert (first.shape, first.dtype, first.backend) == (
        (64, 64),
        "bfloat16",
        "cutlass",
    )
    for name in swapped_names(report):
        weight = model.get_parameter(name)
        assert isinstance(weight, SparseSemiStructuredTensor)
        assert not weight.requires_grad
        assert torch.equal(weight.to_dense(), dense.get_parameter(name))
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)
        assert torch.equal(
            model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0),
            dense.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0),
        )


def test_the_report_is_text_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    report = step_cli.to_semi_structured(llama(), exclude=["*.q_proj.*", "lm_head.*"])
    assert str(report).splitlines() == [
        "12 of 16 weights swapped, by cutlass",
        "3 kept, excluded: model.layers.0.self_attn.q_proj.weight, "
        "model.layers.1.self_attn.q_proj.weight, lm_head.weight",
        "1 kept, of Embedding, not the weight of a Linear: model.embed_tokens.weight",
    ]


class Layers(nn.Module):
    """One layer of each kind that stays as it is, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Linear(128, 64)
        self.odd = nn.Linear(120, 64)
        self.narrow = nn.Linear(128, 10)
        self.dense = nn.Linear(128, 64)
        self.convolution = nn.Conv2d(16, 16, 1)
        self.attention = nn.MultiheadAttention(64, 2)
        self.encoder = nn.TransformerEncoderLayer(64, 2, 128)
        self.tied = nn.Linear(128, 64)
        self.other = nn.Linear(128, 64)
        self.rewired = nn.Linear(128, 64)
        self.wide = nn.Linear(128, 64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(128, 64))
        self.absent = nn.Linear(128, 64, device="meta")


def layers() -> Layers:
    made = Layers()
    absent, made.absent = made.absent, nn.Identity()  # type: ignore[assignment]
    pruned(made)
    made.absent = absent.bfloat16()
    made.dense.weight.data[3, 4:7] = 1
    made.other.weight = made.tied.weight
    made.rewired.forward = made.good.forward  # type: ignore[method-assign]
    made.wide.float()
    return made


def test_what_does_not_fit_stays_as_it_is_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)
    model = layers()
    before = {name: (p, p.clone()) for name, p in model.named_parameters()}
    report = step_cli.to_semi_structured(model)
    found = reasons(report)
    assert swapped_names(report) == ["good.weight"]
    assert report.swapped[0].backend == "cutlass"
    assert "of Linear" not in " ".join(found.values())
    for name, words in {
        "odd.weight": "64x120: both sizes must be multiples of 16",
        "narrow.weight": "10x128: both sizes",
        "dense.weight": "not 2:4 along its inputs",
        "convolution.weight": "of Conv2d",
        "attention.in_proj_weight": "of MultiheadAttention",
        "attention.out_proj.weight": "of NonDynamicallyQuantizableLinear",
        "encoder.linear1.weight": "read by nn.TransformerEncoderLayer itself",
        "tied.weight": "shared by several modules (Linear and Linear)",
        "rewired.weight": "the forward of its layer was replaced",
        "wide.weight": "float32: convert it",
        "normed.parametrizations.weight.original1": "of ParametrizationList",
        "absent.weight": "on meta",
    }.items():
        assert words in found[name], name
    for name, weight in model.named_parameters():
        if name != "good.weight" and not weight.is_meta:
            assert weight is before[name][0] and torch.equal(weight, before[name][1])
    x = torch.randn(3, 4, 128).bfloat16()
    weight, bias = before["good.weight"][1], model.good.bias
    assert torch.allclose(
        model.good(x), nn.functional.linear(x, weight, bias), atol=0.05
    )


def test_a_second_call_swaps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    model = nn.Sequential(pruned(nn.Linear(128, 64)))
    assert len(step_cli.to_semi_structured(model).swapped) == 1
    again = step_cli.to_semi_structured(model)
    assert reasons(again) == {"0.weight": "semi-structured already"}
    assert step_cli.to_semi_structured(pruned(nn.Linear(128, 64))).swapped


def test_on_the_cpu_nothing_is_swapped_and_the_report_says_what_would_be() -> None:
    model = pruned(nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 10)))
    report = step_cli.to_semi_structured(model)
    assert not report.swapped
    assert reasons(report) == {
        "0.weight": "on cpu: sparse kernels need an NVIDIA GPU",
        "1.weight": "10x64: both sizes must be multiples of 16",
    }
    assert type(model[0].weight) is nn.Parameter  # type: ignore[index]


@pytest.mark.parametrize(("found", "fits"), [((7, 5), False), ((8, 0), True)])
def test_gpus_without_sparse_tensor_cores_are_told(
    monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    weight: Any = type("Weight", (), {"is_cuda": True, "device": "cuda:0"})()
    if fits:
        semi_structured.check_device(weight)
        return
    with pytest.raises(semi_structured.StaysPlainError, match=r"7\.5: .* need 8\.0"):
        semi_structured.check_device(weight)


def test_a_machine_that_cannot_multiply_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, multiplies=False)
    model = nn.Sequential(pruned(nn.Linear(128, 64)))
    (reason,) = reasons(step_cli.to_semi_structured(model)).values()
    assert "CUTLASS: not supported on your machine" in reason
    assert "cuSPARSELt: " in reason and "\n" not in reason
    assert type(model[0].weight) is nn.Parameter


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lm_heat\.\*'; nearest: lm_head.weight"):
        step_cli.to_semi_structured(llama(), exclude="lm_heat.*")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_logits_are_those_of_the_dense_model(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs an Ampere or later GPU")
    dense: Any = llama().to(dtype).cuda()
    model = copy.deepcopy(dense)
    report = step_cli.to_semi_structured(model)
    assert len(report.swapped) == 15, str(report)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = model(ids.cuda()).logits, dense(ids.cuda()).logits
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    apart = (found.double() - expected.double()).abs().max()
    assert apart <= tolerance * expected.double().abs().max().clamp(min=1)
