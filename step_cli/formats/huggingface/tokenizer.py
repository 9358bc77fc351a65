"""The tokenizer of a Hugging Face directory, to be kept with the weights."""

import shutil
from pathlib import Path

from step_cli.formats.huggingface.directory import inside

# What tokenizers and image processors of transformers save, besides code.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "preprocessor_config.json",
    "processor_config.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one directory to another, as far as it has them.

    Raises:
        InputError: One of them is a link that leads out of ``source``.
    """
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(inside(source, name), target / name)
