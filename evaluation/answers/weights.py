"""What decides what a model makes of a text: its weights, and what lies beside them."""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.command.errors import UserError, first_line
from data.models import (
    WEIGHTS_INDEX,
    load_tokenizer,
    model_directory,
    tokenizer_hash,
    weight_files,
    weights_hash,
)
from evaluation.answers.cache import Store

# Configurations, tokenizer, vocabulary, chat template. Where one does not matter, a result is only made anew.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
MODULES = "modules.json"
TOKENIZER_PACKAGES = ("transformers", "tokenizers")


def settings_hash(directory: Path) -> str:
    """SHA-256 over the small files of a model's directory, wherever it lies.

    Of a sentence-transformers model also over the folders that its modules.json names: pooling, or a dense layer with
    weights of its own.

    Raises:
        UserError: a file cannot be read, or modules.json is no list of modules.
    """
    files = {file for pattern in SETTINGS for file in directory.glob(pattern) if file.name != WEIGHTS_INDEX}
    digest = hashlib.sha256()
    try:
        for folder in _module_folders(directory):
            files |= {file for file in folder.rglob("*") if file.is_file()}
        for name, file in sorted((os.path.relpath(file, directory), file) for file in files):
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    except OSError as error:
        raise UserError(f"model '{directory}' cannot be read ({first_line(error)}). Copy it again.") from error
    return digest.hexdigest()


def identify_weights(path: str, store: Store | None = None) -> dict[str, str]:
    """The hash of a model's weights.

    Args:
        store: remembers it as long as nothing has touched the files: reading those of a 3 B model takes seconds, for
            each of a dozen checkpoints and in each run.
    """
    if store is None:
        return {"weights_sha256": weights_hash(path)}
    files = []
    for file in weight_files(model_directory(path)):
        found = file.stat()
        # The time of change (ctime) cannot be set, as the time of modification can.
        files.append([str(file.resolve()), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns])
    table = store.get_or_make("weights", {"files": files}, lambda: pa.table({"sha256": [weights_hash(path)]}))
    return {"weights_sha256": table["sha256"][0].as_py()}


def tokenizer_settings(model: str) -> dict[str, Any]:
    """What decides a model's tokens, with its chat template; found without loading the tokenizer."""
    packages = {name: metadata.version(name) for name in TOKENIZER_PACKAGES}
    return {"settings_sha256": settings_hash(model_directory(model)), "packages": packages}


def kept_tokenizer_hash(model: str, store: Store | None = None) -> str:
    """`data.models.tokenizer_hash` of a model's tokenizer.

    Args:
        store: remembers it as long as the model's files are the same: loading a tokenizer takes seconds.

    Raises:
        UserError: the model has no usable tokenizer.
    """

    def find() -> str:
        return tokenizer_hash(load_tokenizer(model))

    if store is None:
        return find()
    table = store.get_or_make("tokenizers", tokenizer_settings(model), lambda: pa.table({"sha256": [find()]}))
    return table["sha256"][0].as_py()


def _module_folders(directory: Path) -> list[Path]:
    path = directory / MODULES
    if not path.is_file():
        return []
    try:
        folders = [module["path"] for module in json.loads(path.read_text(encoding="utf-8"))]
        return [directory / folder for folder in folders if folder]  # "" is the directory itself
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' is no list of modules ({first_line(error)}). Copy the file again.") from error
