"""What decides what a model makes of a text: its weights, and what lies beside them."""

from importlib import metadata
from typing import Any

import pyarrow as pa

from data.model_settings import check_tokenizer_fits, settings_hash, text_model_identity
from data.models import declared_ends, load_tokenizer, model_directory, tokenizer_hash, weight_files, weights_hash
from evaluation.answers.cache import Store

TOKENIZER_PACKAGES = ("transformers", "tokenizers")


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


def identify_text_model(model: str, store: Store) -> dict[str, str]:
    """`data.model_settings.text_model_identity`, with weights and a sound tokenizer remembered by the store.

    Raises:
        UserError: the model cannot be read, or has no weights; or the tokenizer gives ids beyond the embedding.
    """
    identity = text_model_identity(model, lambda path: identify_weights(path, store)["weights_sha256"])

    def check() -> pa.Table:
        check_tokenizer_fits(model)
        return pa.table({"fits": [True]})

    store.get_or_make("fits", identity, check)
    return identity


def tokenizer_settings(model: str) -> dict[str, Any]:
    """What decides a model's tokens, with its chat template; found without loading the tokenizer."""
    packages, directory = {name: metadata.version(name) for name in TOKENIZER_PACKAGES}, model_directory(model)
    ends = list(declared_ends(directory))
    return {"settings_sha256": settings_hash(directory), "ends": ends, "packages": packages}


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
