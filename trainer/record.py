"""What decides the result of a training run: a checkpoint may only be resumed under the same."""

import dataclasses
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError
from trainer.objectives import OBJECTIVES

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments
    from trainer.config import ScriptArguments

# The TrainingArguments that decide the result, beside the batch size.
DECISIVE = (
    *("seed", "data_seed", "max_steps", "num_train_epochs", "dataloader_drop_last"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("mixed_precision", "neftune_noise_alpha"),
)
# And those that decide where training is stopped early; with them our options of that.
STOPPING = ("metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps", "eval_delay")
# Of the record, what decides nothing: where the objective's module lies. The hash of its source decides.
UNDECIDED = ("origin.entry",)
# Of pairs only: groups have an order of their own.
PAIR_ORDER = ("train_sampling_strategy",)


def job_record(
    script: "ScriptArguments",
    training: "PaperTrainingArguments",
    model_config: "ModelConfig",
    *,
    model: dict[str, str],
    data: dict[str, Any],
    use: str | None,
    rank_by: str | None,
    row_tokens: int,
) -> dict[str, Any]:
    """The record of a run, for `trainer.output`.

    Args:
        model: hashes of its weights, or configuration, and of its tokenizer.
        data: checksums.
        use, rank_by: with the sets' own names for entries from outside, so that either way of writing is one job.
        row_tokens: token budget of a forward pass.

    Raises:
        UserError: an option of the objective has the name of another entry of the record.
    """
    objective, origin = script.chosen, OBJECTIVES.origin(script.objective)
    pairs = objective.needs == "pairs"
    decisive = (*DECISIVE, *(PAIR_ORDER if pairs else ()))
    load = dataclasses.asdict(model_config)
    record = {
        "objective": objective.name,
        **({"origin": origin} if origin else {}),
        "model": model,
        "row_tokens": None if pairs else row_tokens,
        "data": data,
        "split": script.split,
        # Older records lack it.
        **({} if script.max_length is None else {"max_length": script.max_length}),
        "use": use,
        "rank_by": rank_by,
        **{name: getattr(script, name) for name in ("min_similarity", "max_similarity")},
        **({"in_support": True} if script.in_support else {}),  # older records lack it
        **({"early_stopping": _stopping(script, training)} if script.early_stopping_patience else {}),
        **({} if script.skip_below is None else {"skip_below": script.skip_below}),  # likewise
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "training": {name: getattr(training, name) for name in decisive},
        # By its hashes, not its name: see "model".
        "load": {k: v for k, v in load.items() if k not in ("model_name_or_path", "model_revision")},
    }
    options = _decisive_options(script.options)
    if taken := sorted(options.keys() & {*record, "origin"}):
        raise UserError(
            f"objective '{objective.name}' has an option '{taken[0]}', which trainer_job.json calls something else. "
            "Rename it."
        )
    return {**record, **options}


def _stopping(script: "ScriptArguments", training: "PaperTrainingArguments") -> dict[str, Any]:
    """What decides when training is stopped early."""
    ours = {name: getattr(script, name) for name in ("early_stopping_patience", "eval_split", "max_eval_samples")}
    return {**ours, **{name: getattr(training, name) for name in STOPPING}}


def _decisive_options(options: Any) -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(options) if field.metadata.get("decides", True)]
    values = {field.name: getattr(options, field.name) for field in fields}
    return {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}  # type: ignore[call-overload, arg-type]  # an instance
