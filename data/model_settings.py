"""What decides what a model makes of a text: its weights, and the small files beside them.

One rule for whatever embeds, scores or compares texts: embedders, reward models, BERTScore's encoder, featurisers.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from data.command.errors import UserError, first_line
from data.models import (
    SMALL_FILES,
    WEIGHTS_INDEX,
    model_directory,
    read_object,
    refuse_adapter,
    vocabulary_size,
    weights_hash,
)
from data.shape import parse_json
from data.tokens import require_rows

MODULES = "modules.json"
PART = 1 << 20  # bytes
# What says how a model came about, or how it generates, and what its weights' files are called.
IDLE = (
    *(WEIGHTS_INDEX, "generation_config.json", "trainer_job.json", "trainer_state.json", "ensemble.json"),
    *("all_results.json", "train_results.json", "eval_results.json"),
)
# In config.json, what whoever saved a model last wrote of it, the dtype (that of the weights is in their hash), how it
# generates, and its ends and labels, which are compared by themselves or are of other models.
IDLE_NAMES = (
    *("transformers_version", "architectures", "dtype", "torch_dtype", "tokenizer_class", "return_dict", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "task_specific_params", "problem_type", "id2label", "label2id"),
    *("output_attentions", "output_hidden_states", "use_return_dict", "torchscript", "use_bfloat16", "pruned_heads"),
)
# Of it, what decides not even how vLLM serves the model, which goes by dtype and ends too.
SAVER_NAMES = ("transformers_version", "_name_or_path")


def config_hash(directory: Path, known: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over what decides, beside weights and tokenizer, what a language model computes.

    That is config.json as transformers understands it, less what it takes without being told, and the code that comes
    with the model: a copy that another version saved, with other names and all values written out, has the same.

    Args:
        known: a manifest's `job.model`, to compare with. What it says is the answer if the very words of config.json
            are those of then, since another transformers may understand more of them.

    Raises:
        UserError: a file cannot be read.
    """
    known = known or {}
    said = known.get("config_sha256")
    # Once it was the hash of the words alone.
    if said and config_words_hash(directory) in (said, known.get("config_words_sha256")):
        return said
    return _hash_with_code(directory, _decisive(read_object(directory / "config.json")))


def config_words_hash(directory: Path) -> str:
    """SHA-256 over the words of a config.json that decide anything, whoever reads it, and code that comes with it.

    Raises:
        UserError: a file cannot be read.
    """
    config = read_object(directory / "config.json")
    return _hash_with_code(directory, {key: value for key, value in config.items() if key not in SAVER_NAMES})


def _hash_with_code(directory: Path, config: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    try:
        for file in sorted(directory.glob("*.py")):
            content = file.read_bytes()
            digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    except OSError as error:
        raise UserError(f"model '{directory}' cannot be read ({first_line(error)}). Copy it again.") from error
    return digest.hexdigest()


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says, in today's names, beyond the defaults of its class.

    Defaults are left out, since a file may name them or not, and a later transformers may know more of them.
    """
    from transformers import AutoConfig

    kind: Any = config.get("model_type")
    try:
        usual = AutoConfig.for_model(kind).to_dict()
        said = AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    except Exception:  # a class that comes with the model, or values that transformers does not take: by its words
        said, usual = config, {}
    return {**_beyond(said, usual), "model_type": kind}


def _beyond(said: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """What is not as usual in a dictionary and those that lie in it; null is what is not said, unless usual is more."""
    beyond: dict[str, Any] = {}
    for key, value in said.items():
        if key in IDLE_NAMES or str(key).startswith("_") or value == usual.get(key):
            continue
        if isinstance(value, dict):
            value = _beyond(value, usual[key] if isinstance(usual.get(key), dict) else {})
            if not value:  # as if it were not said
                continue
        # 1e4 and 10000 are one number, however it was written.
        beyond[str(key)] = int(value) if isinstance(value, float) and value.is_integer() else value
    return beyond


def text_model_identity(model: str, hash_weights: Callable[[str], str] = weights_hash) -> dict[str, str]:
    """The hashes of a model's weights and of its settings.

    Args:
        model: directory or hub id.
        hash_weights: `data.models.weights_hash`, or what remembers it.

    Raises:
        UserError: the model cannot be reached or read, has no safetensors weights, or an adapter lies beside them.
    """
    directory = model_directory(model)
    refuse_adapter(f"'{model}'", directory)
    return {"weights_sha256": hash_weights(model), "settings_sha256": settings_hash(directory)}


def settings_hash(directory: Path) -> str:
    """SHA-256 over the small files of a model's directory, wherever it lies.

    Of a sentence-transformers model also over the folders that its modules.json names: pooling, normalisation, or a
    dense layer with weights of its own.

    Raises:
        UserError: a file cannot be read, or modules.json is no list of modules that lie in the directory.
    """
    files = {file for pattern in SMALL_FILES for file in directory.glob(pattern) if file.name not in IDLE}
    digest = hashlib.sha256()
    try:
        for folder in _module_folders(directory):
            files |= {file for file in folder.rglob("*") if file.is_file()}
        for name, file in sorted((os.path.relpath(file, directory), file) for file in files):
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:  # part by part: a module may have weights
                while part := content.read(PART):
                    digest.update(part)
    except OSError as error:
        raise UserError(f"model '{directory}' cannot be read ({first_line(error)}). Copy it again.") from error
    return digest.hexdigest()


def check_tokenizer_fits(model: str) -> None:
    """Refuse a model without a tokenizer, or whose tokenizer gives ids beyond its embedding: call it before any work.

    Whether one that is code can be loaded, or that of a sentence-transformers model of its own kind, shows when the
    model is.

    Raises:
        UserError: the tokenizer cannot be loaded, or gives ids that the embedding has no rows for.
    """
    from transformers import AutoTokenizer

    directory = model_directory(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever tokenizers, sentencepiece or json raise on damaged files
        if _reads_otherwise(directory):
            return
        raise UserError(
            f"its tokenizer cannot be loaded ({first_line(error).rstrip('.')}). Save one beside it: "
            f"tokenizer.save_pretrained('{model}')."
        ) from error
    if (directory / "config.json").is_file():
        require_rows(tokenizer, vocabulary_size(str(directory)), model)


def _module_folders(directory: Path) -> list[Path]:
    path = directory / MODULES
    if not path.is_file():
        return []
    try:
        folders = [PurePath(module["path"]) for module in parse_json(path.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' is no list of modules ({first_line(error)}). Copy the file again.") from error
    for folder in folders:
        if folder.is_absolute() or ".." in folder.parts or "\0" in str(folder):
            raise UserError(f"'{path}' names a module outside of the model's directory, {str(folder)!r}. Correct it.")
    return [directory / folder for folder in folders if folder.parts]  # "" is the directory itself


def _reads_otherwise(directory: Path) -> bool:
    """Whether a model's texts are read by code that comes with it, or not by a tokenizer that lies beside it."""
    modules = directory / MODULES
    if modules.is_file():
        try:
            first = parse_json(modules.read_bytes())[0]
            return bool(first["path"]) or not str(first["type"]).endswith(".Transformer")
        except (ValueError, TypeError, LookupError):  # no list of modules: `settings_hash` says so
            return True
    files = [directory / name for name in ("config.json", "tokenizer_config.json")]
    return any("auto_map" in read_object(file) for file in files if file.is_file())
