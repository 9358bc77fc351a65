"""Every configuration of the sample models: its real size, and two steps of its path.

The paths read small files in the real formats; sizes are cut with ``--set``. Those of
the real models are the published ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from data import written  # noqa: E402
from plans import plan_for  # noqa: E402

from step_cli import verify  # noqa: E402
from step_cli.config.samples import PLACES, sample_directory  # noqa: E402
from step_cli.config.train import load_config  # noqa: E402
from step_cli.models.spec import build_model  # noqa: E402
from step_cli.training.run import train  # noqa: E402
from step_cli.training.setup import selection  # noqa: E402

# Weights of the model that train, and of those the ones that become N:M.
SIZES = {
    "bert-base/glue.toml": (109_483_778, 84_934_656),
    "deit-small/imagenet.toml": (22_050_664, 14_155_776),
    "densenet121/cifar100.toml": (7_048_548, 6_860_800),
    "digits-resnet/config.toml": (307_690, 305_152),
    "gpt2/pretraining.toml": (124_373_760, 56_623_104),
    "gpt2/wikitext-103.toml": (124_439_808, 84_934_656),
    "gpt2/wikitext-2.toml": (124_439_808, 84_934_656),
    "resnet18/cifar10.toml": (11_173_962, 11_157_504),
    "stdlib-bert/config.toml": (947_984, 393_216),
    "stdlib-gpt/config.toml": (842_496, 786_432),
    "transformer-base/wmt17.toml": (63_082_496, 44_040_192),
    "translate-tiny/config.toml": (703_744, 688_128),
}
BOTH_PHASES = ["switch.criterion=fixed", "switch.step=1"]
SHORT = ["train.steps=2", "train.warmup_steps=1", "train.grad_accumulation=1",
         "train.batch_size=4", "train.eval_every=2", "train.log_every=1",
         "train.checkpoint_every=1000"]  # fmt: skip
TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "vocab_size": 24}  # fmt: skip
TINY_GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 24,
             "n_positions": 16}  # fmt: skip


def options(sizes: dict[str, Any]) -> list[str]:
    return [f"model.options.{key}={json.dumps(value)}" for key, value in sizes.items()]


def cifar10(folder: Path) -> list[str]:
    return [f"data.source={written.write_cifar10(folder / 'd')}",
            *options({"width": 8})]  # fmt: skip


def cifar100(folder: Path) -> list[str]:
    return [f"data.source={written.write_cifar100(folder / 'd')}",
            *options({"growth": 4, "layers": [1, 1, 1, 1]})]  # fmt: skip


def glue(folder: Path) -> list[str]:
    """Weights of bert-base-uncased's kind, with its old names and another head."""
    from safetensors.torch import load_file, save_file

    bert = written.write_tokenizer(folder / "bert")
    config = transformers.BertConfig(**TINY_BERT)
    transformers.BertForMaskedLM(config).save_pretrained(bert)
    tensors = load_file(bert / "model.safetensors")
    old = {k.replace("Norm.weight", "Norm.gamma"): v for k, v in tensors.items()}
    save_file(old, bert / "model.safetensors", {"format": "pt"})
    data = written.write_sst2(folder / "SST-2")
    return [f"data.source={data}", f"data.tokenizer={bert}", f"model.weights={bert}",
            "data.length=16", *options(TINY_BERT)]  # fmt: skip


def wikitext(folder: Path) -> list[str]:
    """Weights of gpt2's kind: the bare model."""
    gpt2 = written.write_tokenizer(folder / "gpt2")
    config = transformers.GPT2Config(**TINY_GPT2)
    transformers.GPT2Model(config).save_pretrained(gpt2)
    data = written.write_wikitext(folder / "wikitext")
    return [f"data.source={data}", f"data.tokenizer={gpt2}", f"model.weights={gpt2}",
            "data.length=16", *options(TINY_GPT2)]  # fmt: skip


def openwebtext(folder: Path) -> list[str]:
    data = folder / "openwebtext"
    data.mkdir()
    for name in ("train", "val"):
        tokens = torch.arange(400) % 24
        (data / f"{name}.bin").write_bytes(tokens.to(torch.uint16).numpy().tobytes())
    return [f"data.source={data}", "data.length=16", *options(TINY_GPT2)]


def wmt17(folder: Path) -> list[str]:
    tokenizer = written.write_tokenizer(folder / "tokenizer")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
             "encoder_attention_heads": 2, "decoder_attention_heads": 2,
             "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
             "vocab_size": 24}  # fmt: skip
    return [f"data.source={written.write_wmt(folder / 'wmt')}",
            f"data.tokenizer={tokenizer}", *options(sizes)]  # fmt: skip


def imagenet(folder: Path) -> list[str]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "image_size": 32}  # fmt: skip
    return [f"data.source={written.write_images(folder / 'd')}", "data.image_size=32",
            *options({**sizes, "num_labels": 2})]  # fmt: skip


def built_in(folder: Path) -> list[str]:
    return ["train.batch_size=256", *options({"layers": 1, "width": 16})]


PATHS: dict[str, Callable[[Path], list[str]]] = {
    "bert-base/glue.toml": glue,
    "deit-small/imagenet.toml": imagenet,
    "densenet121/cifar100.toml": cifar100,
    "gpt2/pretraining.toml": openwebtext,
    "gpt2/wikitext-103.toml": wikitext,
    "gpt2/wikitext-2.toml": wikitext,
    "resnet18/cifar10.toml": cifar10,
    "stdlib-bert/config.toml": built_in,
    "transformer-base/wmt17.toml": wmt17,
    "translate-tiny/config.toml": built_in,
}  # digits-resnet and stdlib-gpt have tests of their own


def path_of(name: str) -> Path:
    sample, _, file = name.partition("/")
    return sample_directory(sample) / file


def test_no_configuration_is_forgotten() -> None:
    place = next(place for place in PLACES if place.is_dir())
    found = {str(path.relative_to(place)) for path in place.glob("*/*.toml")}
    assert found == SIZES.keys()
    assert PATHS.keys() == SIZES.keys() - {
        "digits-resnet/config.toml", "stdlib-gpt/config.toml",
    }  # fmt: skip


DOCS = Path(__file__).parents[2] / "docs" / "samples.md"


@pytest.mark.parametrize("name", SIZES)
def test_the_document_tells_each_configuration_with_its_size(name: str) -> None:
    sample, _, file = name.partition("/")
    text = DOCS.read_text(encoding="utf-8")
    if file == "config.toml":
        (row,) = (x for x in text.splitlines() if x.startswith(f"| `{sample}` |"))
        assert f"{SIZES[name][0] / 1e6:.2f} M weights" in row
        return
    (row,) = (x for x in text.splitlines() if f"`{sample}/" in x and file in x)
    assert all(f"{count:,}" in row for count in SIZES[name])


@pytest.mark.parametrize("name", SIZES)
def test_the_model_has_its_real_size(name: str) -> None:
    config = load_config(path_of(name))
    with torch.device("meta"):
        model = build_model(config.model.source, config.model.options).model
    plan = plan_for(model, selection(config))
    parameters = dict(model.named_parameters())
    trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
    sparse = sum(parameters[layer].numel() for layer in plan)
    assert (trained, sparse) == SIZES[name]
    assert not any(
        layer.startswith(("head", "classifier", "lm_head")) for layer in plan
    )


@pytest.mark.parametrize("name", PATHS)
def test_two_steps_of_the_whole_path(name: str, tmp_path: Path) -> None:
    overrides = [*SHORT, *PATHS[name](tmp_path)]
    config = load_config(path_of(name), overrides)
    if config.sparsity.recipe == "step":
        config = load_config(path_of(name), [*overrides, *BOTH_PHASES])
    report = train(config, tmp_path / "run")
    assert report.ok and report.steps == 2
    assert report.metrics["eval_loss"] > 0
    verdict = verify(tmp_path / "run")
    assert verdict.ok and verdict.checkpoints[0].layers
    assert report.density == pytest.approx(config.sparsity.pattern.density, abs=0.02)


def test_mnli_and_sts_b_need_no_other_model(tmp_path: Path) -> None:
    rows = [(text, text, f"{n % 5}.5") for n, text in enumerate(written.sentences(12))]
    for split in ("train", "dev"):
        header = ("sentence1", "sentence2", "score")
        written.write_tsv(tmp_path / "STS-B" / f"{split}.tsv", header, rows)
    overrides = [*SHORT, *BOTH_PHASES, *glue(tmp_path), "model.options.num_labels=1",
                 f"data.source={tmp_path / 'STS-B'}"]  # fmt: skip
    report = train(
        load_config(path_of("bert-base/glue.toml"), overrides), tmp_path / "r"
    )
    assert -1 <= report.metrics["eval_pearson"] <= 1
