"""`python -m trainer.run`: train a model on a negative set (cpo, cpo-rank, dpo), or on ground truths (mle, pss)."""

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, exit_on_user_error, first_line
from data.command.log import start_logging
from data.command.usage import answered
from data.manifest import DTYPES
from data.storage import sha256
from trainer.config import GROUND_TRUTHS_ALONE, PSS, ScriptArguments
from trainer.output import check_output, claim_output, find_checkpoint, resume_from

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments
    from trainer.groups.training_data import TrainingData
    from trainer.objectives.pairs import PairTrainer
    from trainer.trainer import ContrastiveTrainer

log = logging.getLogger(__name__)

# The TrainingArguments that decide the result, beside the batch size.
DECISIVE = (
    *("seed", "data_seed", "max_steps", "num_train_epochs", "dataloader_drop_last"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"),
    *("mixed_precision", "neftune_noise_alpha"),
)
# Of pairs only: groups have an order of their own.
PAIR_ORDER = ("train_sampling_strategy",)

USAGE = "python -m trainer.run --shards DIR --model M --output_dir O --objective cpo [--key value ...]"
ABOUT = """
Train on the shards of a negative set with Contrastive Preference Optimization (arXiv 2502.16433: K-way, with a
reference model; not TRL's CPO of arXiv 2401.08417) or a baseline: dpo, mle, pss. The final model and its tokenizer
lie in --output_dir itself.

Besides the options below it takes every argument of transformers' TrainingArguments and of TRL's ModelConfig under its
own name (--max_steps, --per_device_train_batch_size, --gradient_accumulation_steps, --dtype, --use_peft, --load_in_4bit
...). --help_all lists them. Defaults are the paper's: AdamW, learning rate 1e-5, weight decay 0.05, batch of 64 groups.
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, ScriptArguments, usage=USAGE, about=ABOUT):
        return
    start_logging()
    from trainer.arguments import make_parser, parse

    if "--help_all" in argv:
        make_parser().print_help()
        return
    train(*parse(argv))


def train(script: ScriptArguments, training: "PaperTrainingArguments", model_config: "ModelConfig") -> None:
    """Run one training job; everything that can be refused is refused before anything is written.

    Of several processes only the main one looks at the output directory and writes to it.

    Raises:
        UserError: unusable model, data, negative set or checkpoint, or an output directory that holds another job.
    """
    from data.models import check_model, load_tokenizer, tokenizer_hash, weights_hash
    from trainer.groups.sampler import EpochOfSampler
    from trainer.groups.training_data import load_training_data
    from trainer.monitor.safety import CheckpointOnSigterm
    from trainer.monitor.watch import Curves, GroundTruthWatch, MetricsFile

    assert script.model is not None  # ScriptArguments.check
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > training.world_size:
        raise UserError(
            f"{started} processes were started, but no GPU was found, so that each would train alone. On CPUs add "
            "--use_cpu true; else start one process."
        )
    is_main = training.process_index == 0
    if not is_main:
        logging.getLogger().setLevel(logging.WARNING)
    output = Path(str(training.output_dir))
    resume = resume_from(training.resume_from_checkpoint)
    checkpoint = find_checkpoint(resume, output)
    # transformers reads it too, and takes the text "false" for a directory.
    training.resume_from_checkpoint = checkpoint
    directory = check_model(script.model, needs_weights=not script.from_scratch)
    tokenizer = load_tokenizer(script.model)
    identity: dict[str, Any] = {"tokenizer_sha256": tokenizer_hash(tokenizer)}
    if script.from_scratch:
        identity["config_sha256"] = sha256((directory / "config.json").read_bytes())
    else:
        identity["weights_sha256"] = weights_hash(script.model)
    row_tokens = script.row_tokens or (8192 if training.device.type == "cuda" else 1024)
    decisive = {"model": identity, "row_tokens": None if script.objective == "dpo" else row_tokens}
    seed = training.seed if training.data_seed is None else training.data_seed
    data = load_training_data(script, tokenizer, identity, seed=seed, watched=training.eval_strategy != "no")
    job = _job(script, training, model_config, {**decisive, "data": data.source})
    if is_main:
        check_output(output, job, resume, checkpoint)
    trainer = _make_trainer(script, training, model_config, directory, data, tokenizer, row_tokens)
    sigterm = CheckpointOnSigterm(trainer.accelerator)
    for callback in (EpochOfSampler(), MetricsFile(), GroundTruthWatch(), Curves(), sigterm):
        trainer.add_callback(callback)
    if is_main:
        claim_output(output, job)
    if resume and not checkpoint:
        log.info("no checkpoint in %s yet, starting from step 0", output)
    trainer.train(resume_from_checkpoint=checkpoint)
    if sigterm.stopped:
        log.warning(
            "SIGTERM: stopped at step %d, checkpoint saved; go on with --resume_from_checkpoint true",
            trainer.state.global_step,
        )
        sys.exit(128 + signal.SIGTERM)
    trainer.save_model()
    trainer.save_state()
    if is_main and model_config.use_peft:
        print(f"adapter: {output} (merge it into the reference before evaluating)")
    elif is_main:
        print(f"model: {output}")


def _make_trainer(
    script: ScriptArguments,
    training: "PaperTrainingArguments",
    model_config: "ModelConfig",
    directory: Path,
    data: "TrainingData",
    tokenizer: Any,
    row_tokens: int,
) -> "ContrastiveTrainer | PairTrainer":
    """Model and trainer. Writes nothing; of the output directory transformers makes at most the empty folder."""
    from transformers import set_seed

    from trainer.groups.dataset import Collator
    from trainer.objectives.scheduled import ScheduledSampling
    from trainer.trainer import ContrastiveTrainer

    set_seed(training.seed)
    try:
        if script.objective == "dpo":
            from trl import get_peft_config

            from trainer.objectives.pairs import make_dpo_trainer, preference_pairs

            # It may refuse: before a large model is loaded.
            pairs = preference_pairs(data.train)
            held_out = preference_pairs(data.held_out) if data.held_out is not None else None
            policy = _load_policy(script, model_config, directory)
            _compare_with_scorer(data.scored, policy, training, None)
            return make_dpo_trainer(
                *(pairs, policy, get_peft_config(model_config), tokenizer, training, script.beta), held_out
            )
        model, path = _load_model(script, model_config, directory)
        log.info(
            *("%s on %d groups, %s layout, at most %d tokens per pass", script.objective, len(data.train)),
            *(path, row_tokens),
        )
        _compare_with_scorer(data.scored, model, training, path)
        pss = script.objective == "pss"
        return ContrastiveTrainer(
            model=model,
            args=training,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            data_collator=Collator(
                path, row_tokens, getattr(data.train, "strategies", ()), script.pss_mixtures if pss else 1
            ),
            processing_class=tokenizer,
            objective=script.objective,
            beta=script.beta,
            path=path,
            sft_weight=script.sft_weight,
            scheduled=ScheduledSampling(script.pss_share, script.pss_passes) if pss else None,
        )
    except UserError:
        raise
    except (ImportError, ValueError, OSError, KeyError, RuntimeError) as error:
        raise UserError(
            f"cannot set up the training of model '{script.model}' with these options: {first_line(error)}"
        ) from error


def _compare_with_scorer(
    scored: list[tuple[str, str]], model: Any, training: "PaperTrainingArguments", path: str | None
) -> None:
    """Warn where the reference was scored otherwise than the policy will be: rounding alone then makes an h.

    Args:
        path: this run's layout; None: not to be compared, as for TRL, which always pads.
    """
    from trainer.monitor.start import computed_in

    dtype = str(computed_in(training, model)).removeprefix("torch.")
    mine = f"{dtype}, {path} layout" if path else dtype
    theirs = {f"{other}, {layout} layout" if path else other: other for other, layout in scored}
    plain = training.mixed_precision == "no"
    for spoken, other in theirs.items():
        if spoken != mine:
            log.warning(
                "The reference was scored in %s; this run computes in %s. Each token then starts off by rounding, "
                "which beta times the tokens of a response magnify. Train %s, or make the set with --scorer_dtype %s.",
                *(spoken, mine, f"with --dtype {other}" if plain else "without mixed precision", dtype),
            )


def _load_model(script: ScriptArguments, model_config: "ModelConfig", directory: Path) -> tuple[Any, str]:
    """The policy, taught to return log-probabilities and wrapped for PEFT if asked; and its path."""
    from trl import get_peft_config

    from trainer.scoring.logprobs import prepare_model

    model = _load_policy(script, model_config, directory)
    path = prepare_model(model)
    peft_config = get_peft_config(model_config)
    if peft_config is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training

        if model_config.load_in_4bit or model_config.load_in_8bit:
            model = prepare_model_for_kbit_training(model)
        model = get_peft_model(model, peft_config)
    return model, path


def _load_policy(script: ScriptArguments, model_config: "ModelConfig", directory: Path) -> Any:
    """The policy as transformers loads it, without dropout unless for mle and pss."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_quantization_config

    dtype = model_config.dtype
    if dtype not in (None, "auto", *DTYPES):  # argparse checks flags, not what a YAML file says
        raise UserError(f"unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}.")
    options: dict[str, Any] = {"dtype": dtype if dtype in (None, "auto") else getattr(torch, dtype)}
    if model_config.attn_implementation:
        options["attn_implementation"] = model_config.attn_implementation
    if script.from_scratch:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), **options)
    else:
        quantization = get_quantization_config(model_config)
        if quantization is not None:
            options["quantization_config"] = quantization
            options["device_map"] = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
        model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, **options)
    if script.objective not in GROUND_TRUTHS_ALONE:
        # Dropout would make the policy differ from the reference that was scored without it.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]  # torch types attributes as tensors
    return model


def _job(
    script: ScriptArguments, training: "PaperTrainingArguments", model_config: "ModelConfig", more: dict[str, Any]
) -> dict[str, Any]:
    """What decides the result of this run: a checkpoint may only be resumed under the same."""
    options = dataclasses.asdict(model_config)
    decisive = (*DECISIVE, *(PAIR_ORDER if script.objective == "dpo" else ()))
    return {
        "objective": script.objective,
        **more,
        "split": script.split,
        "use": script.use,
        "rank_by": script.rank_by,
        "beta": script.beta if script.objective not in GROUND_TRUTHS_ALONE else None,
        **{name: getattr(script, name) for name in ("min_similarity", "max_similarity", "sft_weight")},
        **({name: getattr(script, name) for name in PSS} if script.objective == "pss" else {}),
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "training": {name: getattr(training, name) for name in decisive},
        # By its hashes, not its name: see "model".
        "load": {k: v for k, v in options.items() if k not in ("model_name_or_path", "model_revision")},
    }


if __name__ == "__main__":
    sys.exit(main())
