"""Each parameter of the models of transformers, against the type of its module.

The models are built on the meta device, two layers deep. What a parameter is, is read
from transformers: from the class of its module, or, for a parameter that the module
multiplies by itself, from the code of its `forward`. Both rules are held against that:
the one for modules (`sparse_adamw`), and the one for files, which knows names, shapes
and the configuration.
"""

import inspect
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from models_of_transformers import (
    VARIANTS,
    architectures,
    build,
    names_in_files,
    parts,
)
from torch import nn

from step_cli.errors import NothingSelectedError
from step_cli.formats.huggingface.model_config import model_config_of
from step_cli.nm.families import ModelConfig, axis_by_config
from step_cli.nm.family_table import FAMILIES
from step_cli.nm.selection import Chosen, Selection
from step_cli.nm.weight_rule import Description
from step_cli.optim.layers import choose_layers
from step_cli.recipes import choosing
from step_cli.recipes.sparse_adamw import sparse_adamw

SEED, SAMPLE = 17, 30
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# One of each way to store weights, in every run.
ALWAYS = [
    ("aria_text", "AriaTextModel"),
    ("bert", "BertModel"),
    ("clvp", "ClvpModelForConditionalGeneration"),
    ("convbert", "ConvBertModel"),
    ("csm", "CsmForConditionalGeneration"),
    ("dbrx", "DbrxModel"),
    ("decision_transformer", "DecisionTransformerModel"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gpt_bigcode", "GPTBigCodeModel"),
    ("gpt_neo", "GPTNeoModel"),
    ("gpt_oss", "GptOssForCausalLM"),
    ("granitemoe", "GraniteMoeModel"),
    ("imagegpt", "ImageGPTModel"),
    ("jetmoe", "JetMoeModel"),
    ("llama4_text", "Llama4ForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("moshi", "MoshiForConditionalGeneration"),
    ("openai-gpt", "OpenAIGPTModel"),
    ("qwen3_vl_moe_text", "Qwen3VLMoeTextModel"),
    ("recurrent_gemma", "RecurrentGemmaModel"),
    ("resnet", "ResNetModel"),
    ("t5", "T5Model"),
    ("wav2vec2", "Wav2Vec2ForXVector"),
    ("xlnet", "XLNetModel"),
]
# Group axes of what its module multiplies by in a way that `axis_in_code` cannot read.
BY_HAND: dict[tuple[str, str], int] = {
    ("CsmCodebooksHead", "weight"): 1,  # linear(x, weight[i].T)
    ("DbrxExpertGLU", "w1"): 1,  # x.matmul(w1.T), of [experts * ffn, hidden]
    ("DbrxExpertGLU", "v1"): 1,
    ("DbrxExpertGLU", "w2"): 0,  # x.matmul(w2)
    ("EsmFold2ConfidenceHead", "plddt_weight"): 1,  # einsum("...c,...cb->...b")
    ("EsmFold2ConfidenceHead", "resolved_weight"): 1,
    ("FunnelRelMultiheadAttention", "r_kernel"): 0,  # einsum("td,dnh->tnh")
    ("Inkling2DynamicShortConvolution", "static_weight"): 0,  # taps of each channel
    ("JetMoeParallelExperts", "weight"): 2,  # linear(x, weight[i])
    ("QuantLinear", "weight"): 1,  # linear(x, quantized weight)
    ("XLNetRelativeAttention", "o"): 2,  # einsum("ibnd,hnd->ibh")
    ("ZambaMambaMixer", "x_proj_weight"): 2,  # weight[:, None] @ x, x is [in, tokens]
    ("ZambaMambaMixer", "dt_proj_weight"): 2,
    **{("XLNetRelativeAttention", own): 0 for own in "qkvr"},  # "ibh,hnd->ibnd"
    **{
        (f"{kind}FlexibleLinear", "weight"): 2  # x @ weight.transpose(1, 2)
        for kind in ("Moshi", "KyutaiSpeechToText")
    },
}


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    found: ModuleType = pytest.importorskip("transformers")
    return found


@cache
def code_of(kind: Any) -> str:
    return inspect.getsource(kind)


def axis_in_code(module: nn.Module, own: str) -> int | None:
    """The group axis of a parameter as the code of its module uses it."""
    rank = len(getattr(module, own).shape)
    kind: Any = type(module)
    if (kind.__name__, own) in BY_HAND:
        return BY_HAND[kind.__name__, own]
    if hasattr(module, "is_transposed"):  # transformers' own mark of fused experts
        return rank - 2 if module.is_transposed else rank - 1
    code = code_of(kind)
    weight = rf"self\.{own}\b(?:\[\w+\]|\.float\(\)|\.type\([^)]*\)|\.to\([^)]*\))*"
    if re.search(rf"linear\((?:[^()]|\([^()]*\))*?,\s*{weight}\s*[,)]", code):
        return rank - 1
    if re.search(rf"(@|mm\(.*,|matmul\(.*,)\s*\(?{weight}\.transpose\(1, 2\)", code):
        return rank - 1
    if re.search(rf"(@|mm\(.*,|matmul\(.*,)\s*\(?{weight}(\s|\))", code):
        return rank - 2
    if own == "weight" and kind.__name__ == "AMSoftmaxLoss":  # mm(x, normalize(weight))
        return 0
    return None


def expected(module: nn.Module, own: str) -> int | str | None:
    """The group axis, or why a parameter is left out; None: its code has to tell."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(module, TRANSPOSED):
        return "consumer"
    if type(module).__name__ == "Conv1D":
        return 0
    if isinstance(module, LINEAR) and own == "weight":
        return 1
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return 1 if "weight" in own else "name"
    return None


def matrices(model: Any) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, own = name.rpartition(".")
        if parameter.ndim > 1 and parameter.numel():
            yield name, modules[owner], own, parameter


def outcome(chosen: Chosen[Description]) -> dict[str, int | str]:
    """The axis of each layer, if it is known, and why each other tensor is none."""
    found: dict[str, int | str] = {t.name: reason for t, reason in chosen.skipped}
    return found | {
        layer.tensor.name: "assumed" if layer.assumed else layer.spec.axis
        for layer in chosen.layers
    }


def tied_to_a_table(model: Any) -> set[int]:
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def described(parameters: Mapping[str, torch.Tensor]) -> list[Description]:
    return [
        Description(name, str(p.dtype).removeprefix("torch."), tuple(p.shape))
        for name, p in parameters.items()
    ]


def faults_of(model: Any) -> list[str]:
    """What either rule says of the parameters of a model that is not so."""
    config = model_config_of(model.config.to_dict())
    in_model = outcome(choose_layers(model, Selection()))
    in_files = answers_of_files(model, config)
    tables = tied_to_a_table(model)
    faults: list[str] = []
    for name, module, own, parameter in matrices(model):
        is_table = id(parameter) in tables
        want = "embedding" if is_table else expected(module, own)
        answers = in_files[id(parameter)]
        if want is None:
            got = [in_model[name], *answers.values()]
            faults += raw_faults(name, module, own, got, config)
            continue
        if isinstance(want, int) and parameter.shape[want] % 4:
            want = "size"
        if in_model[name] != want:
            faults.append(f"{name}: {want} by its module, found {in_model[name]}")
        if not is_table or isinstance(module, nn.Embedding):
            faults += [
                f"{each}: {want}, found {got} by its name"
                for each, got in answers.items()
                if got != want and not excused(each, want, got)
            ]
    return faults + optimizer_faults(model, in_model)


def optimizer_faults(model: Any, by_type: dict[str, int | str]) -> list[str]:
    """Where `sparse_adamw` chooses otherwise, or leaves dense without a word."""
    with patch.object(choosing, "tell") as tell:
        try:
            optimizer = sparse_adamw(model, switch=5)
        except NothingSelectedError:
            return []
    (coverage,) = tell.call_args.args
    told = {left.name for left in coverage.left}
    names = {p: name for name, p in model.named_parameters()}
    sparse = {names[p]: spec.axis for p, spec in optimizer.sparse_parameters()}
    faults = [
        f"{name}: stays dense without a word"
        for name, _, _, parameter in matrices(model)
        # What is frozen is chosen, and stays dense until it wakes.
        if (name in told) == (name in sparse and parameter.requires_grad)
    ]
    chosen = {name: axis for name, axis in by_type.items() if isinstance(axis, int)}
    if sparse != chosen:
        faults.append(f"the optimizer's axes are {sparse}, not {chosen}")
    shares = coverage.chosen_share + sum(left.share for left in coverage.left)
    return faults + ([f"shares add up to {shares}"] if abs(shares - 1) > 1e-9 else [])


def excused(name: str, want: int | str, got: int | str) -> bool:
    """A table without "weight" in its name, or stored as the head it is tied to."""
    return want == "embedding" and (got == "name" or name.endswith("lm_head.weight"))


def answers_of_files(
    model: Any, config: ModelConfig
) -> dict[int, dict[str, int | str]]:
    """What the rule for files says of each parameter, under each of its names."""
    answers: dict[int, dict[str, int | str]] = {}
    for parameters in (dict(model.named_parameters()), names_in_files(model)):
        found = outcome(Selection().choose(described(parameters), config))
        for name, parameter in parameters.items():
            answers.setdefault(id(parameter), {})[name] = found[name]
    return answers


def raw_faults(
    name: str,
    module: nn.Module,
    own: str,
    got: list[int | str],
    config: ModelConfig,
) -> Iterator[str]:
    """Faults of a parameter that its module uses itself."""
    shape = tuple(getattr(module, own).shape)
    by_config = axis_by_config(name, shape, config)
    if "assumed" in got:
        yield f"{name}: its axis is assumed"
    judged = [axis for axis in (*got, by_config) if isinstance(axis, int)]
    if not judged:
        return
    axis = axis_in_code(module, own)
    if axis is None:
        yield f"{name}: {type(module).__name__} uses it in a way that is not known"
    elif set(judged) != {axis}:
        yield f"{name}: axis {axis} in {type(module).__name__}, found {judged}"


def faults_of_all(models: Iterable[Any]) -> tuple[list[str], int, set[str]]:
    """Faults of models, how many could be built, and the classes of their modules."""
    faults: list[str] = []
    classes: set[str] = set()
    built = 0
    for model in models:
        if model is None:
            continue
        built += 1
        classes |= {type(module).__name__ for module in model.modules()}
        kind = f"{model.config.model_type} {type(model).__name__}"
        faults += [f"{kind}: {fault}" for fault in faults_of(model)]
    return faults, built, classes


def test_a_sample_of_models_and_one_of_each_way_to_store(
    transformers: ModuleType,
) -> None:
    sample = random.Random(SEED).sample(architectures(), SAMPLE)
    models = (build(transformers, *pair) for pair in [*ALWAYS, *sample])
    faults, built, _ = faults_of_all(models)
    assert not faults, "\n".join(faults)
    assert built > 0.8 * (len(ALWAYS) + SAMPLE)


def test_models_with_other_modules_than_by_default(transformers: ModuleType) -> None:
    models = (build(transformers, *variant) for variant in VARIANTS)
    faults, built, _ = faults_of_all(models)
    assert not faults, "\n".join(faults)
    assert built == len(VARIANTS)


@pytest.mark.slow
def test_every_model(transformers: ModuleType) -> None:
    models = (build(transformers, *pair) for pair in architectures())
    faults, built, classes = faults_of_all(models)
    assert not faults, "\n".join(faults)
    assert built > 1000
    named = {re.split(r"\W", family.module)[0] for family in FAMILIES}
    # Of transformers 4; of a model that needs timm; words.
    absent = {"JukeboxConv1D", "EinLinear", "OmDetTurboLanguageBackbone", "nn", ""}
    assert named - absent <= classes


@pytest.mark.slow
def test_every_part_of_a_model(transformers: ModuleType) -> None:
    faults, built, _ = faults_of_all(parts(transformers))
    assert not faults, "\n".join(faults)
    assert built > 200


def test_a_wrong_axis_would_be_found(
    transformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(transformers, "gpt_oss", "GptOssForCausalLM")
    assert faults_of(model) == []
    model.config = transformers.CONFIG_MAPPING["mixtral"]()
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = model.config
    assert any(
        "axis 1 in GptOssExperts, found [2" in fault for fault in faults_of(model)
    )
