"""What samples, where it is not the reference: another model of its tokenizer, or an adapter of the reference."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.command.errors import UserError
from data.model_settings import config_hash
from data.models import (
    ADAPTER,
    TOKENIZER_FILES,
    check_causal,
    load_tokenizer,
    model_directory,
    read_object,
    read_tokenizer,
    tokenizer_hash,
    vocabulary_size,
    weights_hash,
)
from data.tokens import marks_of

# Of an adapter's configuration, what says where it came from and not what it computes.
IDLE_KEYS = ("base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version")


@dataclass(frozen=True)
class SamplingModel:
    """What an engine loads.

    Attributes:
        model: directory of the model.
        adapter: directory of a LoRA adapter that is laid over it, or "".
        named: as the user named it; "" for the reference itself.
    """

    model: str
    adapter: str = ""
    named: str = ""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """Beside the model, for `negatives_gen.models.engine.Engine`."""
        return {"adapter": self.adapter} if self.adapter else {}

    def identity(self) -> dict[str, Any]:
        """What a manifest says of it as `job.sampler`. Raises UserError if its files cannot be read."""
        if self.adapter:
            return {
                "name": self.named,
                "weights_sha256": weights_hash(self.adapter),
                "adapter_config_sha256": _adapter_config_hash(Path(self.adapter)),
            }
        return {
            "name": self.named,
            "weights_sha256": weights_hash(self.model),
            "config_sha256": config_hash(model_directory(self.model)),
        }


def sampling_model(
    named: str, path: str, reference: str, tokenizer: Any, trust_remote_code: bool = False
) -> SamplingModel:
    """The model that samples, checked against the reference whose continuations its samples become.

    Args:
        named, path: as the user named it, and where it lies.
        reference: directory of the reference model.
        tokenizer: the reference's.

    Raises:
        UserError: the model has another tokenizer, other ends or a larger vocabulary, or its kind is not taken.
    """
    directory = model_directory(path)
    if (directory / ADAPTER).is_file() and not (directory / "config.json").is_file():
        _require_lora(named, directory)
        if any((directory / name).is_file() for name in TOKENIZER_FILES):
            _require_tokenizer(named, read_tokenizer(directory, named, trust_remote_code), tokenizer)
        return SamplingModel(reference, str(directory), named)
    check_causal(path)
    own = load_tokenizer(path, trust_remote_code)
    _require_tokenizer(named, own, tokenizer)
    ends, known = marks_of(own).ends, marks_of(tokenizer).ends
    if ends != known:
        raise UserError(
            f"continuations of --sampler '{named}' end with the ids {sorted(ends)}, the reference's with "
            f"{sorted(known)} (EOS, generation_config.json, chat template). Make these files alike."
        )
    rows, most = vocabulary_size(path), vocabulary_size(reference)  # of fewer than its ids `load_tokenizer` has said so
    if rows is not None and most is not None and rows > most:
        raise UserError(
            f"--sampler '{named}' has {rows} rows of an embedding, the reference {most}: it could sample ids that the "
            "reference lacks. Give another one."
        )
    return SamplingModel(path, "", named)


def _require_tokenizer(named: str, own: Any, tokenizer: Any) -> None:
    ours, theirs = tokenizer_hash(tokenizer), tokenizer_hash(own)
    if ours != theirs:
        raise UserError(
            f"the tokenizer of --sampler '{named}' has SHA-256 {theirs[:16]}, the reference's has {ours[:16]}: its ids "
            "would be other texts. Give a model of the same tokenizer."
        )


def _require_lora(named: str, directory: Path) -> None:
    settings = read_object(directory / ADAPTER)
    if (kind := settings.get("peft_type")) != "LORA":
        raise UserError(f"--sampler '{named}' is an adapter of type {kind}; vLLM serves LORA. Merge it into its model.")
    if beyond := [key for key in ("modules_to_save", "use_dora") if settings.get(key)]:
        raise UserError(f"--sampler '{named}' is an adapter with {beyond[0]}, which vLLM does not serve. Merge it.")
    rank = settings.get("r")
    if type(rank) is not int or rank < 1:
        raise UserError(f"the {ADAPTER} of --sampler '{named}' has the rank {rank!r}; it must be 1 or more.")


def _adapter_config_hash(directory: Path) -> str:
    """SHA-256 over what an adapter's configuration says of what it computes; what it does not say is null."""
    said = {k: v for k, v in read_object(directory / ADAPTER).items() if k not in IDLE_KEYS and v is not None}
    if isinstance(said.get("target_modules"), list):
        said["target_modules"] = sorted(map(str, said["target_modules"]))  # peft keeps them in a set
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
