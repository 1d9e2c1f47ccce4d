"""What, beside its weights, decides what a model makes of a text."""

import hashlib
import json
import os
from pathlib import Path

from data.errors import UserError, first_line
from data.identity import WEIGHTS_INDEX

# Configurations, tokenizer, vocabulary, chat template. Where one does not matter, a result is only made anew.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
MODULES = "modules.json"


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


def _module_folders(directory: Path) -> list[Path]:
    path = directory / MODULES
    if not path.is_file():
        return []
    try:
        folders = [module["path"] for module in json.loads(path.read_text(encoding="utf-8"))]
        return [directory / folder for folder in folders if folder]  # "" is the directory itself
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' is no list of modules ({first_line(error)}). Copy the file again.") from error
