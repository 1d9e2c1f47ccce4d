"""Parsing of `python -m trainer.run`'s command line with TRL's parser; its errors are one line."""

import os
from dataclasses import dataclass, field
from typing import Any, NoReturn

from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from data.config import read_yaml
from data.errors import UserError, did_you_mean
from trainer.config import PAPER_BATCH_SIZE, PAPER_LEARNING_RATE, PAPER_WEIGHT_DECAY, ScriptArguments


@dataclass
class PaperTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the paper's settings as defaults (section 5 of arXiv 2502.16433)."""

    learning_rate: float = field(default=PAPER_LEARNING_RATE, metadata={"help": "The paper's learning rate."})
    weight_decay: float = field(default=PAPER_WEIGHT_DECAY, metadata={"help": "The paper's weight decay."})
    per_device_train_batch_size: int = field(
        default=0,
        metadata={
            "help": "Groups per device and accumulation step. 0: the paper's batch of 64 groups, divided by devices "
            "and accumulation steps."
        },
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every X update steps, as TRL does."})

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size == 0:
            share = int(os.environ.get("WORLD_SIZE", "1")) * max(1, self.gradient_accumulation_steps)
            self.per_device_train_batch_size = max(1, PAPER_BATCH_SIZE // share)
        super().__post_init__()
        # Batches are groups laid out by our collator, not columns that match the model's arguments.
        self.remove_unused_columns = False


class Parser(TrlParser):
    """TRL's parser whose errors are one line, as UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `python -m trainer.run --help_all`.")


def make_parser() -> Parser:
    """The parser of all options: ours, transformers' and TRL's ModelConfig."""
    return Parser(
        [ScriptArguments, PaperTrainingArguments, ModelConfig],  # type: ignore[list-item]  # TRL types it loosely
        prog="python -m trainer.run",
        allow_abbrev=False,
    )


def parse(argv: list[str]) -> tuple[ScriptArguments, PaperTrainingArguments, ModelConfig]:
    """Parse flags over a `--config` YAML over the defaults, as TRL does.

    Raises:
        UserError: unknown key (naming the nearest known one), wrong value, unreadable YAML, missing option.
    """
    parser = make_parser()
    known = {name.lstrip("-") for action in parser._actions for name in action.option_strings} | {"config", "env"}
    argv = [piece for word in argv for piece in (word.split("=", 1) if word.startswith("--config=") else [word])]
    where = "on the command line of python -m trainer.run"
    output_dir_given = any(word.split("=")[0] == "--output_dir" for word in argv)
    if "--config" in argv:
        place = argv.index("--config") + 1
        if place == len(argv):
            raise UserError(f"--config {where} needs a value: a YAML file.")
        content = read_yaml(argv[place])
        output_dir_given = output_dir_given or "output_dir" in content
        for key in content:
            _refuse_unknown(str(key), known, f"in {argv[place]}")
    for word in argv:
        if word.startswith("--"):
            _refuse_unknown(word[2:].split("=")[0], known, where)
    try:
        parsed: Any = parser.parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{str(error).splitlines()[0]} ({where})") from error
    script, training, model = parsed
    script.model = script.model or model.model_name_or_path
    model.model_name_or_path = script.model
    script.check()
    if not output_dir_given:
        raise UserError("python -m trainer.run needs --output_dir: where the model and its checkpoints go.")
    return script, training, model


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    if key not in known and key.replace("-", "_") not in known:
        raise UserError(
            f"unknown key '{key}' {where}.{did_you_mean(key, known)} See `python -m trainer.run --help_all`."
        )
