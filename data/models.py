"""What a model and a tokenizer are, as hashes: two directories with the same weights have the same hash.

Reads safetensors headers itself, so that nothing here needs torch.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from data.command.errors import UserError, first_line
from data.shape import parse_json

MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

# jinja: transformers keeps chat templates in a file of their own. py: code, which runs only with trust_remote_code.
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")


def model_directory(model: str) -> Path:
    """The local directory of a model: itself, or a hub id's snapshot (downloaded once; weights as safetensors only).

    Raises UserError if there is no such directory and no such model on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    if os.path.isabs(model) or model.startswith(".") or model.count("/") > 1:
        raise UserError(f"model '{model}' does not exist. Give a directory with config.json, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise UserError(
            f"model '{model}' is neither a local directory nor a hub model that can be reached ({first_line(error)})."
        ) from error


def check_model(model: str, *, needs_weights: bool = True) -> Path:
    """Check that a model directory has a config, a tokenizer and safetensors weights; return the directory."""
    directory = model_directory(model)
    if not (directory / "config.json").is_file():
        raise UserError(f"model '{model}' has no config.json. Give the directory of a transformers model.")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"model '{model}' has no tokenizer. Save one beside it: tokenizer.save_pretrained('{model}').")
    if needs_weights and not list(directory.glob("*.safetensors")):
        raise UserError(
            f"model '{model}' has no *.safetensors weights. Save it with save_pretrained(), or, to train a new model "
            "from its config.json, pass --from_scratch true to `python -m trainer.run --objective mle`."
        )
    return directory


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model (a transformers tokenizer). Raises UserError if there is none or it lacks an EOS."""
    from transformers import AutoTokenizer

    directory = check_model(model, needs_weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever tokenizers, sentencepiece or json raise on damaged files
        raise UserError(f"the tokenizer of '{model}' cannot be read: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{model}' has no EOS token; every continuation must be able to end.")
    return tokenizer


def architecture(model: str) -> dict[str, Any]:
    """model_type, hidden_size and layers, of the model's config; None where it does not say."""
    config = _text_config(model)
    return {
        "model_type": config.get("model_type"),
        "hidden_size": config.get("hidden_size", config.get("n_embd")),
        "layers": config.get("num_hidden_layers", config.get("n_layer")),
    }


def context_length(model: str) -> int:
    """Longest sequence the model takes, in tokens, from its config (max_position_embeddings or n_positions)."""
    config = _text_config(model)
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = config.get(key)
        if isinstance(value, (int, float)) and value >= 1:
            return int(value)
    raise UserError(f"the config.json of '{model}' does not say its context length (max_position_embeddings).")


def vocabulary_size(model: str) -> int | None:
    """How many token ids the model knows, by its config; None where it does not say."""
    size = _text_config(model).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _text_config(model: str) -> dict[str, Any]:
    """A model's config; where it is of more than text, with what it says of its language model on top."""
    config = read_object(model_directory(model) / "config.json")
    text_config = config.get("text_config")
    return {**config, **text_config} if isinstance(text_config, dict) else config


def weights_hash(model: str) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in name order, however they are sharded.

    The weights are those that transformers loads, in its order: model.safetensors, else the files that
    model.safetensors.index.json names, else all model*.safetensors, else all *.safetensors.
    """
    places: dict[str, tuple[Path, dict, int]] = {}
    for path in weight_files(model_directory(model)):
        header, start = read_header(path)
        for name, entry in header.items():
            places[name] = (path, entry, start)
    if not places:
        raise UserError(
            f"'{model}' has no *.safetensors weights, which identify a model. Save it with save_pretrained()."
        )
    digest = hashlib.sha256()
    for name in sorted(places):
        path, entry, start = places[name]
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        with path.open("rb") as file:
            file.seek(start + begin)
            left = end - begin
            while left:
                chunk = file.read(min(left, 1 << 24))
                if not chunk:
                    raise UserError(f"'{path}' is cut short: tensor '{name}' is incomplete. Copy the file again.")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries (dtype, shape, data_offsets) of a safetensors file by name, and where in it the data starts.

    Raises UserError if the file is none.
    """
    with path.open("rb") as file:
        try:
            size = struct.unpack("<Q", file.read(8))[0]
            header = parse_json(file.read(min(size, MAX_HEADER)))
            header.pop("__metadata__", None)
        except (struct.error, ValueError, AttributeError) as error:
            raise UserError(f"'{path}' is no safetensors file (an unfetched Git LFS file?). Fetch it.") from error
    return header, 8 + size


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers loads a model's weights from (see `weights_hash`); none if there are no safetensors.

    Raises UserError for an index that is damaged or names a missing file.
    """
    whole, index = directory / WEIGHTS, directory / WEIGHTS_INDEX
    if whole.is_file():  # transformers prefers it even to an index beside it, which may be an earlier save's
        return [whole]
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise UserError(f"'{index}' names no files (no weight_map). Copy it again.")
        paths = [directory / name for name in sorted({str(name) for name in names.values()})]
        for path in paths:
            if not path.is_file():
                raise UserError(f"'{index}' names {path.name}, which is not there. Copy the file again.")
        return paths
    return sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("*.safetensors"))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises UserError if it cannot be read or holds something else."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:  # bad JSON and bad UTF-8 are ValueErrors
        raise UserError(f"'{path}' cannot be read ({first_line(error)}). Copy the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' must hold a JSON object, not a {type(content).__name__}. Copy the file again.")
    return content


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over what maps text to ids: the tokenizers pipeline (or the vocabulary) and the special ids."""
    if hasattr(tokenizer, "backend_tokenizer"):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # Set by whoever called the tokenizer last; they do not change how a text maps to ids.
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = tokenizer.get_vocab()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps([content, special], sort_keys=True).encode()).hexdigest()


def chat_template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template, which maps messages to text, or None if there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest() if template else None
