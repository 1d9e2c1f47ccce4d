"""The ensemble of two LoRA adapters of the same base, exact, as an adapter of the sum of both ranks.

An adapter adds s * B @ A to a weight. The mean of two such deltas is again one: A stacks the rows of both A, B the
columns of alpha * s_mle * B_mle and (1 - alpha) * s_cpo * B_cpo, and the scale is 1.
"""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, first_line
from data.models import read_object
from trainer.ensemble.interpolate import not_finite

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# The names of a delta's two factors, and along which axis their rank lies.
RANK_AXIS = {".lora_A.weight": 0, ".lora_B.weight": 1, ".lora_embedding_A": 0, ".lora_embedding_B": 1}
FACTOR_B = (".lora_B.weight", ".lora_embedding_B")

# What must be the same in both adapters.
EQUAL = (
    *("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
# What does not change the delta, or is folded into it. Any other key is a variant of LoRA that must be off.
FREE = (
    *("r", "lora_alpha", "use_rslora", "lora_dropout", "init_lora_weights", "bias"),
    *("auto_mapping", "inference_mode", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
)
# Other initialisations also change the base's own weights.
PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal")

MERGE = "Merge both adapters into their base (merge_and_unload) and give the merged models."


@dataclass(frozen=True)
class Adapter:
    """An adapter as read: `name` is how errors call it."""

    name: str
    directory: Path
    config: dict[str, Any]
    tensors: "dict[str, torch.Tensor]"

    @property
    def scale(self) -> float:
        """What PEFT multiplies B @ A by."""
        rank = self.config["r"]
        return self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter, as transformers decides it."""
    return (directory / CONFIG).is_file()


def read_adapter(directory: Path, name: str) -> Adapter:
    """Read an adapter whose effect is s * B @ A and nothing else. Raises UserError for any other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(directory / CONFIG)
    _check_plain_lora(config, name)
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"{name} has no {WEIGHTS}. Load the adapter and save it with save_pretrained().")
    try:
        tensors = load_file(directory / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{directory / WEIGHTS}' cannot be read ({first_line(error)}). Copy it again.") from error
    for key in sorted(tensors):
        axis = next((axis for ending, axis in RANK_AXIS.items() if key.endswith(ending)), None)
        if axis is None or tensors[key].dim() != 2:
            raise UserError(f"{name} holds '{key}', which is no plain LoRA factor. {MERGE}")
        if tensors[key].shape[axis] != config["r"]:
            raise UserError(
                f"'{key}' of {name} has shape {list(tensors[key].shape)}, which is not of rank {config['r']}. {MERGE}"
            )
    return Adapter(name, directory, config, tensors)


def _check_plain_lora(config: dict[str, Any], name: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{name} is a {config.get('peft_type')} adapter, not LoRA. {MERGE}")
    rank, lora_alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(lora_alpha, int | float):
        raise UserError(f"the {CONFIG} of {name} does not say r and lora_alpha. Copy it again.")
    refused = [key for key in sorted(config) if key not in (*EQUAL, *FREE) and config[key]]
    refused += [] if config.get("bias", "none") == "none" else ["bias"]
    refused += [] if config.get("init_lora_weights") in PLAIN_INITIALISATIONS else ["init_lora_weights"]
    if refused:
        raise UserError(f"{name} has {refused[0]} = {json.dumps(config[refused[0]])}, not plain LoRA. {MERGE}")


def check_same_adapters(mle: Adapter, cpo: Adapter) -> None:
    """Raise UserError, saying what differs first, unless both adapt the same weights of the same base."""
    for key in EQUAL:
        ours, theirs = mle.config.get(key), cpo.config.get(key)
        if _comparable(key, ours) != _comparable(key, theirs):
            raise UserError(
                f"the adapters differ in {key}: {json.dumps(ours)} in {mle.name}, {json.dumps(theirs)} in {cpo.name}. "
                "Give two adapters of the same modules of the same base."
            )
    for key in sorted(mle.tensors.keys() | cpo.tensors.keys()):
        if key not in mle.tensors or key not in cpo.tensors:
            lacks, has = (cpo, mle) if key in mle.tensors else (mle, cpo)
            raise UserError(f"tensor '{key}' of {has.name} is missing in {lacks.name}. {MERGE}")
        ours, theirs = mle.tensors[key].shape, cpo.tensors[key].shape
        rank_axis = 1 if key.endswith(FACTOR_B) else 0
        if ours[1 - rank_axis] != theirs[1 - rank_axis]:
            raise UserError(
                f"tensor '{key}' has shape {list(ours)} in {mle.name} and {list(theirs)} in {cpo.name}. "
                "Give two adapters of the same base."
            )


def _comparable(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return sorted(map(str, value))  # PEFT saves sets, in any order
    if key == "base_model_name_or_path" and isinstance(value, str) and Path(value).is_dir():
        return str(Path(value).resolve())
    return value


def combine(mle: Adapter, cpo: Adapter, alpha: float) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """Config and tensors of the adapter whose delta is alpha * mle's + (1 - alpha) * cpo's.

    In float32 (float64 if a factor is): bfloat16 would round the scaled B once more.
    """
    import torch

    rank = mle.config["r"] + cpo.config["r"]
    config = {**cpo.config, "r": rank, "lora_alpha": rank, "use_rslora": False, "init_lora_weights": True}
    tensors = {}
    for key, theirs in cpo.tensors.items():
        ours = mle.tensors[key]
        wide = torch.float64 if torch.float64 in (ours.dtype, theirs.dtype) else torch.float32
        ours, theirs = ours.to(wide), theirs.to(wide)
        if key.endswith(FACTOR_B):
            tensors[key] = torch.cat([alpha * mle.scale * ours, (1 - alpha) * cpo.scale * theirs], dim=1)
        else:
            tensors[key] = torch.cat([ours, theirs], dim=0)
    return config, tensors


def write_adapter(mle: Adapter, cpo: Adapter, alpha: float, directory: Path) -> None:
    """Write config and weights of the ensemble into a directory; at 0 and 1 they are the one adapter's own files.

    Raises:
        UserError: a number would be nan or infinite.
    """
    from safetensors.torch import save_file

    config, tensors = combine(mle, cpo, alpha)
    for key, tensor in (cpo.tensors if alpha == 0 else mle.tensors if alpha == 1 else tensors).items():
        if not bool(tensor.isfinite().all()):
            raise not_finite(key, alpha)
    if alpha in (0, 1):
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile((cpo if alpha == 0 else mle).directory / name, directory / name)
        return
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
