"""FSDP as accelerate sets it up, where digits or the model itself would be lost."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainingArguments
from transformers.utils import strtobool

from data.command.errors import UserError

UNSHARDED = DistributedType.NO, DistributedType.MULTI_CPU
NO_DEEPSPEED = (
    "DeepSpeed is not supported: its engine counts forward passes as steps, of which processes may have unequally many "
    "here, and ZeRO-3 takes the weights apart before the layout is found out. Use FSDP: accelerate launch "
    "--config_file recipes/accelerate/fsdp.yaml."
)


def is_sharded(training: TrainingArguments) -> bool:
    """Whether FSDP was asked for, by transformers' option or by accelerate's launcher."""
    return bool(training.fsdp) or bool(strtobool(os.environ.get("ACCELERATE_USE_FSDP") or "false"))


def refuse_deepspeed(training: TrainingArguments) -> None:
    """Raise UserError where DeepSpeed was asked for, by transformers' option or by accelerate's launcher."""
    if training.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED") or "false"):
        raise UserError(NO_DEEPSPEED)


def refuse_unsharded(training: TrainingArguments, *, to_run: bool = True) -> None:
    """Refuse FSDP where accelerate would leave it out without a word, and what this trainer does not do with it.

    Args:
        to_run: whether it is to run here, not only to be predicted.

    Raises:
        UserError: FSDP was asked for, and each process would hold the whole model, or the first alone would load one,
            or it is FSDP 1.
    """
    if not is_sharded(training):
        return
    state: Any = training.distributed_state
    if to_run and state.distributed_type in UNSHARDED:
        raise UserError(
            "FSDP was asked for, but accelerate shards over GPUs only: here each process would hold the whole model. "
            "On CPUs use recipes/accelerate/ddp.yaml; with one GPU, too, start by `accelerate launch`."
        )
    if strtobool(os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING") or "false"):
        raise UserError(
            "fsdp_cpu_ram_efficient_loading is not supported: only the first process would have weights to find out "
            "the layout with, and the others would pad. Set it false, as in recipes/accelerate/fsdp.yaml."
        )
    version = (training.fsdp_plugin_args or {}).get("fsdp_version") or os.environ.get("FSDP_VERSION", "1")
    if int(version) != 2:
        raise UserError(
            f"FSDP {version} is not supported: it could not be tested. Set fsdp_version 2, as in "
            "recipes/accelerate/fsdp.yaml."
        )


class SoundSharding:
    """Lets a transformers Trainer train and save under FSDP without loss; to be inherited from beside it.

    accelerate's mixed precision casts what a model returns, and sums gradients over processes, in the narrow type: of
    a token's log-probability of -8 bfloat16 keeps steps of 0.06 nats, and h is beta times a sum of such. Here both stay
    wide; what a matrix product is computed in is as asked for.
    Of a sharded state (SHARDED_STATE_DICT) transformers saves no model that loads without FSDP; here the end of a
    training has one always. A tied head is saved once, as it is without FSDP.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]  # the Trainer's
        trainer: Any = self
        plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = dataclasses.replace(
                plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        trainer: Any = self
        if not trainer.is_fsdp_enabled or _internal_call:  # a checkpoint's: as the state dict's type says
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]  # the Trainer's
            return
        with _whole_state(trainer.accelerator.state.fsdp_plugin):
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]  # the Trainer's

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        trainer: Any = self
        if trainer.is_fsdp_enabled and state_dict is not None:  # gathered, a tied weight once under each of its names
            tied = getattr(trainer.model, "all_tied_weights_keys", None) or {}
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)  # type: ignore[misc]  # the Trainer's


def synchronise_each_pass(model: Any) -> None:
    """Let the next backward passes shard their gradients.

    Else each process would hold whole ones until they are synchronised, which transformers, with accumulation, does in
    the last micro-batch only.
    """
    model.set_requires_gradient_sync(True)


@contextmanager
def _whole_state(plugin: Any) -> Iterator[None]:
    kind = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(kind)
