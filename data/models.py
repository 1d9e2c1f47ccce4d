"""What a model and a tokenizer are, as hashes: two directories with the same weights have the same hash.

Reads safetensors headers itself, so that nothing here needs torch.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.architectures import EMBEDDING, LAYERS, embedding_rows, is_encoder_decoder, longest_sequence, of_text, sizes
from data.command.errors import UserError, first_line
from data.redundant import Place, read_chunks, redundant_tensors
from data.shape import Count, Each, ListOf, misfit, parse_json, parse_shaped
from data.tokens import Declared, declare, require_rows

log = logging.getLogger(__name__)

TENSOR_SHAPE = {"dtype": str, "shape": ListOf(Count()), "data_offsets": ListOf(Count(), least=2)}
MOST_LAYERS = 10_000  # the deepest models have some hundred
MOST_ROWS = 1 << 30  # of an embedding
LONGEST_SAID = 40  # characters of a value, in an error
MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

# Configurations; tokenizer and vocabulary, as tokenizers call them; chat templates, for which transformers has files
# of their own (jinja); code, which runs only with trust_remote_code.
VOCABULARIES = ("*.model", "*.txt", "*.codes", "*.bpe", "*.spm", "*.tiktoken", "*.tokenizer", "*.vocab")
SMALL_FILES = ("*.json", *VOCABULARIES, "*.jinja", "*.py")
HUB_FILES = ("*.safetensors", *SMALL_FILES)


def model_directory(model: str, *, weights: bool = True) -> Path:
    """The local directory of a model: itself, or a hub id's snapshot (downloaded once; weights as safetensors only).

    Args:
        weights: whether a hub id's are downloaded too.

    Raises UserError if there is no such directory and no such model on the hub.
    """
    if Path(model).is_dir():
        return Path(model)
    if os.path.isabs(model) or model.startswith(".") or model.count("/") > 1:
        raise UserError(f"model '{model}' does not exist. Give a directory with config.json, or a hub id.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES if weights else SMALL_FILES)))
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise UserError(
            f"model '{model}' is neither a local directory nor a hub model that can be reached "
            f"({first_line(error).rstrip('.')}). Give the directory of a model, or check the id and the network "
            "(HF_HUB_OFFLINE=1: what is in the hub's cache)."
        ) from error


def check_model(model: str, *, needs_weights: bool = True) -> Path:
    """Check that a model directory has a config, a tokenizer and safetensors weights; return the directory.

    Weights that are not needed are not downloaded.
    """
    directory = model_directory(model, weights=needs_weights)
    if not (directory / "config.json").is_file() and (directory / ADAPTER).is_file():
        raise UserError(
            f"model '{model}' is a LoRA adapter. Merge it into its base first (PEFT's merge_and_unload; "
            "docs/training.md, LoRA) and give the merged model."
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"model '{model}' has no config.json. Give the directory of a transformers model.")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"model '{model}' has no tokenizer. Save one beside it: tokenizer.save_pretrained('{model}').")
    refuse_adapter(f"'{model}'", directory)
    if needs_weights and not list(directory.glob("*.safetensors")):
        raise UserError(
            f"model '{model}' has no *.safetensors weights. Save it with save_pretrained(), or, to train a new model "
            "from its config.json, pass --from_scratch true to `python -m trainer.run --objective mle`."
        )
    return directory


def refuse_adapter(what: str, directory: Path) -> None:
    """Raise UserError for an adapter in a model's directory: some libraries load it, and no hash of weights is of it.

    Args:
        what: the model, for the error.
    """
    if (directory / ADAPTER).is_file():
        raise UserError(
            f"{what} holds a model and an adapter ({ADAPTER}), which transformers loads and vLLM does not. Merge "
            "them (merge_and_unload) or move the adapter away."
        )


def check_causal(model: str, *, needs_weights: bool = True) -> Path:
    """`check_model` of a model that continues texts, which one with an encoder beside its decoder does not."""
    directory = check_model(model, needs_weights=needs_weights)
    config = read_object(directory / "config.json")
    if is_encoder_decoder(config):
        kind = config.get("model_type", "of no type")
        raise UserError(
            f"model '{model}' is an encoder-decoder ({kind}): its answers are no continuations of its prompts. Give a "
            "decoder-only language model."
        )
    _check_sizes(model, config)
    return directory


def _check_sizes(model: str, config: dict[str, Any]) -> None:
    """Raise UserError for sizes of which no model is made, or only after all memory was taken for it."""
    for name, most in {**dict.fromkeys(LAYERS, MOST_LAYERS), "vocab_size": MOST_ROWS}.items():
        size = config.get(name)
        if size is not None and not (type(size) is int and 1 <= size <= most):
            said = repr(size) if len(repr(size)) <= LONGEST_SAID else f"{repr(size)[:LONGEST_SAID]} ..."
            raise UserError(
                f"the config.json of '{model}' says {name} {said}; it must be a whole number from 1 to {most}. Correct "
                "the file."
            )


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model (a transformers tokenizer), which knows the ends that generation_config.json names.

    Raises:
        UserError: the model has no tokenizer, it lacks an EOS, or it gives ids that the model has no embedding for.
    """
    directory = check_model(model, needs_weights=False)
    tokenizer = read_tokenizer(directory, model, trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of '{model}' has no EOS token; every continuation must be able to end.")
    rows = vocabulary_size(model)
    declare(tokenizer, Declared(declared_ends(directory, rows), rows))
    require_rows(tokenizer, rows, model)
    return tokenizer


def read_tokenizer(directory: Path, named: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a directory, whatever else lies there. Raises UserError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever tokenizers, sentencepiece or json raise on damaged files
        raise UserError(f"the tokenizer of '{named}' cannot be read: {first_line(error)}") from error


def declared_ends(directory: Path, rows: int | None = None) -> tuple[int, ...]:
    """The ids that a continuation may end with beside the tokenizer's EOS: generation_config.json's `eos_token_id`.

    One or several; of a model without that file, config.json's (of its text model, where it has one of its own), as
    transformers and vLLM do.

    Args:
        rows: of the embedding: ids beyond it, which no model can produce, are left out.

    Raises:
        UserError: the file cannot be read, or says something that is no id.
    """
    generation = directory / "generation_config.json"
    path = generation if generation.is_file() else directory / "config.json"
    ids = (read_object(path) if path == generation else _text_config(str(directory))).get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(number) is int for number in ids):
        raise UserError(f"'{path}' has the eos_token_id {ids}; it must be an id or a list of ids. Correct the file.")
    return tuple(number for number in ids if number >= 0 and (rows is None or number < rows))


def vocabulary_size(model: str) -> int | None:
    """Rows of a model's embedding, as its config.json says: more than the tokenizer has where they are padded.

    Where that does not say, as of a model of texts and images, the embedding's own shape does; None where nothing does.

    Raises:
        UserError: config.json or the weights cannot be read.
    """
    rows = embedding_rows(_text_config(model))
    if rows is not None:
        return rows
    places = tensor_places(model_directory(model))
    shapes = {tuple(place[1]["shape"]) for name, place in places.items() if EMBEDDING.search(name)}
    return min(shapes)[0] if len(shapes) == 1 and len(min(shapes)) == 2 else None


def architecture(model: str) -> dict[str, Any]:
    """model_type, hidden_size and layers, of the model's config; None where it does not say."""
    return sizes(_text_config(model))


def context_length(model: str, longest: int | None = None) -> int:
    """Longest sequence the model takes, in tokens, from its config (max_position_embeddings or n_positions).

    Args:
        longest: what the user wants at most (--max_length); for a model whose config does not say, as of state space
            models and relative positions, it is all that is known.

    Raises:
        UserError: neither config nor user says a length.
    """
    found = [length for length in (longest_sequence(_text_config(model)), longest) if length]
    if found:
        return min(found)
    raise UserError(
        f"the config.json of '{model}' does not say its context length (max_position_embeddings). Say it with "
        "--max_length."
    )


def warn_of_cap(asked: int | None, taken: Mapping[str, int]) -> None:
    """Say in one line that models take less than --max_length asks; where they take it, nothing.

    Args:
        asked: the longest prompt with response in tokens, or None.
        taken: name of a model -> the longest that it is given.
    """
    less = [f"{name} takes {tokens:,}" for name, tokens in taken.items() if asked is not None and tokens < asked]
    if less:
        said = ", ".join(less)
        log.warning("--max_length %s is beyond the context: %s, prompt and response together", f"{asked:,}", said)


def context_option(model: str, context: int) -> dict[str, int]:
    """What vLLM must be told of a context in tokens: it takes 2,048 where config.json does not say."""
    return {} if longest_sequence(_text_config(model)) else {"max_model_len": context}


def _text_config(model: str) -> dict[str, Any]:
    return of_text(read_object(model_directory(model) / "config.json"))


def weights_hash(model: str) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor that the model computes with, in name order.

    However they are sharded, and whatever else lies there: a head that is the embedding again, or buffers that
    transformers makes itself (`data.redundant`).

    The weights are those that transformers loads, in its order: model.safetensors, else the files that
    model.safetensors.index.json names, else all model*.safetensors, else all *.safetensors.

    Raises:
        UserError: the directory has no weights, or they are cut short.
    """
    directory = model_directory(model)
    places = _required_places(model, directory)
    return _hash_of({name: places[name] for name in places.keys() - redundant_in(directory, places)})


def hash_of_all_weights(model: str) -> str:
    """The hash that sets from before 0.6 have of a model: of every tensor, computed with or not; see `weights_hash`."""
    return _hash_of(_required_places(model, model_directory(model)))


def _required_places(model: str, directory: Path) -> dict[str, Place]:
    places = tensor_places(directory)
    if not places:
        raise UserError(
            f"'{model}' has no *.safetensors weights, which identify a model. Save it with save_pretrained()."
        )
    return places


def _hash_of(places: dict[str, Place]) -> str:
    digest = hashlib.sha256()
    for name in sorted(places):
        path, entry, _ = places[name]
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        for chunk in read_chunks(places[name]):
            digest.update(chunk)
            begin += len(chunk)
        if begin < end:
            raise UserError(f"'{path}' is cut short: tensor '{name}' is incomplete. Copy the file again.")
    return digest.hexdigest()


def tensor_places(directory: Path) -> dict[str, Place]:
    """Where each tensor of a model lies. Raises UserError for files that are none."""
    places: dict[str, Place] = {}
    for path in weight_files(directory):
        header, start = read_header(path)
        places.update({name: (path, entry, start) for name, entry in header.items()})
    return places


def redundant_in(directory: Path, places: dict[str, Place]) -> dict[str, str | None]:
    """What a model's files hold and it does not compute with, see `data.redundant.redundant_tensors`."""
    config = directory / "config.json"
    return redundant_tensors(places, read_object(config) if config.is_file() else {})


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries (dtype, shape, data_offsets) of a safetensors file by name, and where in it the data starts.

    Raises UserError if the file is none or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = parse_shaped(file.read(min(size, MAX_HEADER)), dict)
    except OSError as error:
        raise unreadable(path, error) from error
    except (struct.error, ValueError) as error:
        raise UserError(f"'{path}' is no safetensors file (an unfetched Git LFS file?). Fetch it.") from error
    header.pop("__metadata__", None)
    wrong = misfit(header, Each(TENSOR_SHAPE)) or next(
        (f"{name} ends before it begins" for name, entry in header.items() if not _in_order(entry["data_offsets"])), ""
    )
    if wrong:
        raise UserError(f"'{path}' is no safetensors file: in its header, {wrong}. Copy the file again.")
    return header, 8 + size


def _in_order(offsets: list[int]) -> bool:
    return len(offsets) == 2 and offsets[0] <= offsets[1]


def unreadable(path: Path, error: OSError) -> UserError:
    """What is said of a file that is not there, or that the system does not let us read."""
    what = "Check its permissions." if isinstance(error, PermissionError) else "Copy the file again."
    return UserError(f"'{path}' cannot be read ({error.strerror or first_line(error)}). {what}")


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
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # bad JSON and bad UTF-8 are ValueErrors
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
