"""What a model and a tokenizer are, as hashes: two directories with the same weights have the same hash.

Reads safetensors headers itself, so that nothing here needs torch.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from data.errors import UserError, first_line

MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def model_directory(model: str) -> Path:
    """The local directory of a model: itself, or a hub id's snapshot (downloaded once, safetensors only).

    Raises UserError if there is no such directory and no such model on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    if os.path.isabs(model) or model.startswith(".") or model.count("/") > 1:
        raise UserError(f"model '{model}' does not exist. Give a directory with config.json, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
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


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model (a transformers tokenizer). Raises UserError if there is none or it lacks an EOS."""
    from transformers import AutoTokenizer

    directory = check_model(model, needs_weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever tokenizers, sentencepiece or json raise on damaged files
        raise UserError(f"the tokenizer of '{model}' cannot be read: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{model}' has no EOS token; every continuation must be able to end.")
    return tokenizer


def context_length(model: str) -> int:
    """Longest sequence the model takes, in tokens, from its config (max_position_embeddings or n_positions)."""
    config = json.loads((model_directory(model) / "config.json").read_text())
    config = {**config, **config.get("text_config", {})}
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if config.get(key):
            return int(config[key])
    raise UserError(f"the config.json of '{model}' does not say its context length (max_position_embeddings).")


def weights_hash(model: str) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in name order, however they are sharded."""
    directory = model_directory(model)
    places: dict[str, tuple[Path, dict, int]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            try:
                size = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(min(size, MAX_HEADER)))
            except (struct.error, ValueError) as error:
                raise UserError(f"'{path}' is no safetensors file (an unfetched Git LFS file?). Fetch it.") from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            places[name] = (path, entry, 8 + size)
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
