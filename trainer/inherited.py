"""What becomes of each of transformers' TrainingArguments here: honoured, refused, or without meaning.

Every field stands in one of the three lists; a test fails when a new transformers adds one.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from data.command.errors import UserError
from trainer.objectives import names_with

if TYPE_CHECKING:
    from trl import ModelConfig

# transformers, TRL or this trainer does what they say.
HONOURED = frozenset(
    (
        *("output_dir", "resume_from_checkpoint", "ignore_data_skip"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
        *("optim", "optim_args", "optim_target_modules", "weight_decay"),
        *("adam_beta1", "adam_beta2", "adam_epsilon"),
        *("bf16", "fp16", "tf32", "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cache"),
        *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
        *("log_level_replica", "disable_tqdm", "include_num_input_tokens_seen"),
        *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "seed", "data_seed", "full_determinism", "use_cpu", "debug"),
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
        *("dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_backend", "ddp_timeout"),
        *("fsdp", "fsdp_config"),
    )
)


@dataclass(frozen=True)
class Refusal:
    """Why an option is refused.

    Attributes:
        why: and what to do instead.
        pairs_too: also with objectives on pairs, whose trainer is TRL's; else those honour it.
    """

    why: str
    pairs_too: bool = True


LIGER = "its kernels would replace the forward pass that log-probabilities of packed groups are taken from"
OURS = "steps of groups are dealt to processes and micro-batches by this trainer's own sampler"
REFUSED = {
    "label_smoothing_factor": Refusal("no objective smooths labels"),
    "auto_find_batch_size": Refusal(
        "a step holds exactly the batch that was asked for; lower --row_tokens, or --per_device_train_batch_size with "
        "more --gradient_accumulation_steps"
    ),
    "deepspeed": Refusal(
        "processes may have unequally many forward passes in a step, which its engine counts as steps; use FSDP, "
        "accelerate launch --config_file recipes/accelerate/fsdp.yaml"
    ),
    "parallelism_config": Refusal("weights are sharded by FSDP only"),
    "bf16_full_eval": Refusal("held-out groups are computed as those that are trained on; use --bf16 for both"),
    "fp16_full_eval": Refusal("held-out groups are computed as those that are trained on; use --fp16 for both"),
    "enable_jit_checkpoint": Refusal("SIGTERM saves a checkpoint always"),
    "restore_callback_states_from_checkpoint": Refusal(
        "it also restores that the run was to stop; what our callbacks need to know is restored always"
    ),
    "dataloader_in_order": Refusal("the groups of a step must not depend on which worker is the faster"),
    "length_column_name": Refusal("the tokens of a pair are its column 'length'"),
    "ddp_static_graph": Refusal("steps differ in their numbers of forward passes", pairs_too=False),
    "train_sampling_strategy": Refusal("steps of groups are stratified by length", pairs_too=False),
    "use_liger_kernel": Refusal(LIGER, pairs_too=False),
    "liger_kernel_config": Refusal(LIGER, pairs_too=False),
    "accelerator_config": Refusal(OURS, pairs_too=False),
    "average_tokens_across_devices": Refusal("a step's loss is a mean over all processes always", pairs_too=False),
    "neftune_noise_alpha": Refusal(
        "its noise is scaled by the length of an input row, in which several groups are packed", pairs_too=False
    ),
    "torch_empty_cache_steps": Refusal("lower --row_tokens to save memory", pairs_too=False),
    "skip_memory_metrics": Refusal("held-out groups are watched without measuring memory", pairs_too=False),
}

NO_PREDICTIONS = "held-out groups give a loss and metrics, no predictions that are gathered"
# They change nothing, and nothing is lost.
IDLE = {
    "do_train": "the command trains",
    "do_eval": "--eval_strategy says whether held-out groups are watched",
    "do_predict": "the command trains",
    "remove_unused_columns": "batches are laid out by our collator",
    "label_names": "batches are laid out by our collator",
    "local_rank": "the launcher's environment says it",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "prediction_loss_only": NO_PREDICTIONS,
    "eval_do_concat_batches": NO_PREDICTIONS,
    "eval_use_gather_object": NO_PREDICTIONS,
    "eval_accumulation_steps": NO_PREDICTIONS,
    "include_for_metrics": NO_PREDICTIONS,
    "batch_eval_metrics": NO_PREDICTIONS,
}

OF_ADAPTERS = (
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
    *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
)
OF_4_BITS = "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"


def refuse_unhonoured(training: TrainingArguments, *, pairs: bool) -> None:
    """Raise UserError for an option that would do nothing, or harm.

    Args:
        pairs: whether the objective is on pairs.
    """
    for name, refusal in REFUSED.items():
        if getattr(training, name) == _default(name) or (pairs and not refusal.pairs_too):
            continue
        if refusal.pairs_too:
            raise UserError(f"--{name} is not supported: {refusal.why}. Leave it out.")
        raise UserError(
            f"--{name} goes with --objective {names_with(needs='pairs')} only; {refusal.why}. Leave it out."
        )


def refuse_data_parallel(training: TrainingArguments) -> None:
    """Raise UserError where transformers would spread one process over several GPUs."""
    if training.n_gpu > 1:
        raise UserError(
            f"one process sees {training.n_gpu} GPUs. Start one per GPU, `accelerate launch -m trainer.run ...`, or "
            "use a single one, CUDA_VISIBLE_DEVICES=0."
        )


def idle_among(given: Collection[str]) -> list[str]:
    """Sentences that name the given options that are without meaning here."""
    return [f"--{name} does nothing here: {why}." for name, why in IDLE.items() if name in given]


def idle_of_model(given: Collection[str], model: "ModelConfig") -> list[str]:
    """Sentences that name the given options of TRL's ModelConfig that belong to another one, which is off.

    Args:
        given: names of options.
    """
    belongs = [(name, "use_peft") for name in OF_ADAPTERS] + [(name, "load_in_4bit") for name in OF_4_BITS]
    return [
        f"--{name} does nothing without --{switch} true."
        for name, switch in belongs
        if name in given and not getattr(model, switch)
    ]


def _default(name: str) -> Any:
    if name == "accelerator_config":  # None, of which transformers makes this
        return AcceleratorConfig()
    field = next(field for field in dataclasses.fields(TrainingArguments) if field.name == name)
    return field.default
