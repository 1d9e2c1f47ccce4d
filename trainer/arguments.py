"""Parsing of `python -m trainer.run`'s command line with TRL's parser; its errors are one line."""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from data.command.errors import UserError, did_you_mean, first_line
from data.command.options import read_yaml
from trainer.config import PAPER_BATCH_SIZE, PAPER_LEARNING_RATE, PAPER_WEIGHT_DECAY, ScriptArguments


@dataclass
class PaperTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the paper's settings as defaults (section 5 of arXiv 2502.16433)."""

    learning_rate: float = field(default=PAPER_LEARNING_RATE, metadata={"help": "The paper's learning rate."})
    weight_decay: float = field(default=PAPER_WEIGHT_DECAY, metadata={"help": "The paper's weight decay."})
    per_device_train_batch_size: int = field(
        default=0,
        metadata={
            "help": "Groups (dpo: pairs) per device and accumulation step. 0: the paper's batch of 64, divided by "
            "devices and accumulation steps."
        },
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every X update steps, as TRL does."})

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size == 0:
            processes, steps = int(os.environ.get("WORLD_SIZE", "1")), max(1, self.gradient_accumulation_steps)
            if PAPER_BATCH_SIZE % (processes * steps):
                raise UserError(
                    f"the paper's batch of {PAPER_BATCH_SIZE} cannot be divided by {processes} processes x {steps} "
                    "accumulation steps. Set --per_device_train_batch_size, what one process takes per accumulation "
                    "step."
                )
            self.per_device_train_batch_size = PAPER_BATCH_SIZE // (processes * steps)
        super().__post_init__()
        # Batches are groups laid out by our collator, not columns that match the model's arguments.
        self.remove_unused_columns = False
        # torch warns at each epoch where there is nothing to pin for.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()


ARGUMENTS = (ScriptArguments, PaperTrainingArguments, ModelConfig)


class Parser(TrlParser):
    """TRL's parser whose errors are one line, as UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `python -m trainer.run --help_all`.")


def make_parser() -> Parser:
    """The parser of all options: ours, transformers' and TRL's ModelConfig."""
    return Parser(
        ARGUMENTS,  # type: ignore[list-item]  # TRL types it loosely
        prog="python -m trainer.run",
        allow_abbrev=False,
    )


def parse(argv: list[str]) -> tuple[ScriptArguments, PaperTrainingArguments, ModelConfig]:
    """Parse flags over a `--config` YAML over the defaults, as TRL does.

    Raises:
        UserError: unknown key (naming the nearest known one), wrong value, unreadable YAML, missing option.
    """
    parser = make_parser()
    fields, flags = _known_keys()
    argv = [piece for word in argv for piece in (word.split("=", 1) if word.startswith("--config=") else [word])]
    where = "on the command line of python -m trainer.run"
    given = [word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    if "--config" in argv:
        place = argv.index("--config") + 1
        if place == len(argv):
            raise UserError(f"--config {where} needs a value: a YAML file.")
        for key, value in read_yaml(argv[place]).items():
            _refuse_unknown(str(key), fields | {"env"}, f"in {argv[place]}")
            if key == "output_dir" and value is not None:
                given.append(key)
    for key in given:
        _refuse_unknown(key, flags, where)
    try:
        parsed: Any = parser.parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{first_line(error)} ({where})") from error
    script, training, model = parsed
    script.model = script.model if script.model is not None else model.model_name_or_path
    model.model_name_or_path = script.model
    if isinstance(model.lora_target_modules, str) and re.fullmatch(r"\w+", model.lora_target_modules):
        # TRL unwraps a list of one, which PEFT then takes for a pattern of whole module paths.
        model.lora_target_modules = [model.lora_target_modules]
    script.check()
    if "output_dir" not in given:
        raise UserError("python -m trainer.run needs --output_dir: where the model and its checkpoints go.")
    _refuse_unsupported(training, model)
    _refuse_ignored(script, training)
    _refuse_unwatched(script, training)
    return script, training, model


def _known_keys() -> tuple[set[str], set[str]]:
    """The keys of a YAML file, and those of the command line, which has more: --no_X where X is true by default."""
    fields = [f for cls in ARGUMENTS for f in dataclasses.fields(cls) if f.init]
    names = {f.name for f in fields}
    return names, names | {f"no_{f.name}" for f in fields if f.default is True} | {"config", "help", "help_all"}


def _refuse_unsupported(training: PaperTrainingArguments, model: ModelConfig) -> None:
    """What transformers and TRL can do and this trainer would get wrong."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower()
    if training.deepspeed or launched not in ("", "0", "false", "no"):
        raise UserError(
            "DeepSpeed is not supported. Use FSDP: accelerate launch --config_file recipes/accelerate/fsdp.yaml."
        )
    if training.n_gpu > 1:
        raise UserError(
            f"one process sees {training.n_gpu} GPUs. Start one per GPU, `accelerate launch -m trainer.run ...`, or "
            "use a single one, CUDA_VISIBLE_DEVICES=0."
        )
    if model.model_revision != "main":
        raise UserError(
            f"--model_revision '{model.model_revision}' is not supported. Download that revision and give its "
            "directory as --model."
        )


def _refuse_ignored(script: ScriptArguments, training: PaperTrainingArguments) -> None:
    """Options of transformers that this trainer would ignore, or that break its steps."""
    if training.label_smoothing_factor:
        raise UserError("--label_smoothing_factor is not supported: no objective smooths labels. Leave it out.")
    if training.auto_find_batch_size:
        raise UserError(
            "--auto_find_batch_size is not supported: a step holds exactly the batch that was asked for. Lower "
            "--row_tokens, or --per_device_train_batch_size with more --gradient_accumulation_steps."
        )
    if training.train_sampling_strategy != "random" and script.objective != "dpo":
        raise UserError(
            "--train_sampling_strategy goes with --objective dpo only; steps of groups are stratified by length. Leave "
            "it out."
        )


def _refuse_unwatched(script: ScriptArguments, training: PaperTrainingArguments) -> None:
    """Options of held-out groups that nobody watches, and held-out groups that are trained on."""
    if training.eval_strategy == "no":
        given = {name: getattr(script, name) for name in ("eval_shards", "eval_split", "max_eval_samples")}
        defaults = {f.name: f.default for f in dataclasses.fields(ScriptArguments)}
        idle = [name for name, value in given.items() if value != defaults[name]]
        if training.eval_on_start:
            idle.append("eval_on_start")
        if idle:
            raise UserError(f"--{idle[0]} does nothing without --eval_strategy. Add --eval_strategy steps.")
    elif not script.eval_shards and (script.split == script.eval_split or "all" in (script.split, script.eval_split)):
        raise UserError(
            f"--eval_strategy would watch groups that are trained on: --split is '{script.split}', --eval_split "
            f"'{script.eval_split}'. Train on one half and watch the other, or give other sets as --eval_shards."
        )


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    if key not in known:
        raise UserError(
            f"unknown key '{key}' {where}.{did_you_mean(key, known)} See `python -m trainer.run --help_all`."
        )
