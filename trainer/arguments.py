"""Parsing of `python -m trainer.run`'s command line: our options with our loader, inherited ones with TRL's parser."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_type_hints

import torch
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from data.command.errors import UserError
from data.command.options import fields_of_entries, list_flags, load_config, read_yaml
from data.command.values import convert, plain_type, require_finite, require_positive, split_items
from trainer.config import COMMAND, PAPER_BATCH_SIZE, PAPER_LEARNING_RATE, PAPER_WEIGHT_DECAY, ScriptArguments
from trainer.inherited import idle_among, idle_of_model, refuse_data_parallel, refuse_unhonoured
from trainer.objectives import OBJECTIVES, names_with
from trainer.sharding import NO_DEEPSPEED, refuse_deepspeed, refuse_unsharded

log = logging.getLogger(__name__)


@dataclass
class PaperTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the paper's settings as defaults (section 5 of arXiv 2502.16433)."""

    learning_rate: float = field(default=PAPER_LEARNING_RATE, metadata={"help": "The paper's learning rate."})
    weight_decay: float = field(default=PAPER_WEIGHT_DECAY, metadata={"help": "The paper's weight decay."})
    per_device_train_batch_size: int = field(
        default=0,
        metadata={
            "help": f"Groups ({names_with(needs='pairs')}: pairs) per device and accumulation step. 0: the paper's "
            "batch of 64, divided by devices and accumulation steps."
        },
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every X update steps, as TRL does."})
    logging_first_step: bool = field(
        default=True, metadata={"help": "Log step 1 too: what all later values are seen to have started from."}
    )

    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "With --push_to_hub: end, the finished model alone. every_save, checkpoint and all_checkpoints, as "
            "transformers does, push each checkpoint too, from the output directory, into which they copy its weights."
        },
    )

    def __post_init__(self) -> None:
        # Whether the number of devices decides what each takes: `--dry_run` looks at several numbers.
        self.shares_paper_batch = self.per_device_train_batch_size == 0
        if self.shares_paper_batch:
            processes, steps = int(os.environ.get("WORLD_SIZE", "1")), max(1, self.gradient_accumulation_steps)
            self.per_device_train_batch_size = paper_share(processes, steps)
        super().__post_init__()
        if self.hub_token:  # training_args.bin beside the model would hold it; the hub's client looks for it there too
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        # Batches are groups laid out by our collator, not columns that match the model's arguments.
        self.remove_unused_columns = False
        # transformers would log the first step even so.
        self.logging_first_step = self.logging_first_step and self.logging_strategy != "no"
        # torch warns at each epoch where there is nothing to pin for.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()


def paper_share(processes: int, steps: int) -> int:
    """Groups of the paper's batch that a process takes per accumulation step. Raises UserError where it has none."""
    if PAPER_BATCH_SIZE % (processes * steps):
        raise UserError(
            f"the paper's batch of {PAPER_BATCH_SIZE} cannot be divided by {processes} processes x {steps} "
            "accumulation steps. Set --per_device_train_batch_size, what one process takes per accumulation step."
        )
    return PAPER_BATCH_SIZE // (processes * steps)


INHERITED = (PaperTrainingArguments, ModelConfig)
# TRL's name of our --model.
ALIAS = "model_name_or_path"
# Takes a path, or true; alone it means true.
RESUME = "resume_from_checkpoint"
# Take one or several, which transformers' types hide from its parser.
LISTS = ("report_to", "optim_target_modules")


class Parser(TrlParser):
    """TRL's parser of the inherited arguments, whose errors are one line, as UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See `{COMMAND} --help_all`.")


def make_parser() -> Parser:
    """The parser of transformers' TrainingArguments and TRL's ModelConfig."""
    parser = Parser(INHERITED, prog=COMMAND, allow_abbrev=False, add_help=False)  # type: ignore[arg-type, list-item]  # TRL types it loosely
    actions = {action.dest: action for action in parser._actions}
    for name, hint in _hints().items():
        if name in actions and plain_type(hint) in (int, float):
            actions[name].type = finite(hint)
    for name in LISTS:
        actions[name].nargs = "+"
    return parser


def _hints() -> dict[str, Any]:
    """The types of the inherited arguments."""
    return {name: hint for cls in INHERITED for name, hint in get_type_hints(cls).items()}


def _lists(parser: Parser) -> list[str]:
    """The inherited arguments that are lists."""
    return [action.dest for action in parser._actions if action.nargs == "+"]


def finite(hint: Any) -> Callable[[str], float | int | None]:
    """What makes a finite number of a flag's text, or a whole one of 64 bits, or None where the type has it too."""

    def number(text: str) -> float | int | None:
        return convert(text, hint, "", "")  # a UserError is a ValueError, of which argparse makes a line

    return number


def describe_inherited() -> str:
    """The inherited arguments, as transformers and TRL describe them."""
    return make_parser().format_help().partition("options:")[2].join(["inherited arguments:", ""])


def parse(argv: list[str]) -> tuple[ScriptArguments, PaperTrainingArguments, ModelConfig]:
    """Parse flags over `--config` YAML files over the defaults: ours with our loader, the inherited with TRL's parser.

    Raises:
        UserError: unknown key (naming the nearest known one), wrong value, unreadable YAML, missing option.
    """
    parser = make_parser()
    inherited = {field.name for cls in INHERITED for field in dataclasses.fields(cls) if field.init}
    ours, theirs, values = _divided(argv, parser)
    if ALIAS in values and "--model" not in ours and "model" not in values:
        ours += ["--model", str(values[ALIAS])]
    script = load_config(ScriptArguments, ours, command=COMMAND, others={*inherited, "env"})
    for name, known in fields_of_entries(OBJECTIVES, script.objective).items():
        if name in inherited:
            raise UserError(
                f"objective '{known.entries[0]}' has an option '{name}', which is transformers' or TRL's already. "
                "Rename it."
            )
    _set_environment(values.pop("env", None))
    for name in inherited & values.keys():
        require_finite(values[name], name, "in the --config file")
    for name in values.keys() & set(_lists(parser)):
        if isinstance(values[name], str):
            values[name] = split_items(values[name])
    parser.set_defaults_with_config(**{name: value for name, value in values.items() if name in inherited})
    if values.get("deepspeed") or any(word.partition("=")[0] == "--deepspeed" for word in theirs):
        raise UserError(NO_DEEPSPEED)  # transformers would ask for its package first
    if script.dry_run and not torch.cuda.is_available():
        theirs += ["--use_cpu", "true"]  # what is predicted for a GPU may be asked for where there is none
    try:
        parsed: Any = parser.parse_args_into_dataclasses([*theirs, "--output_dir", script.output_dir])
    except UserError:
        raise
    except (ValueError, TypeError, ImportError, OSError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:400] or type(error).__name__  # some put values on further lines
        raise UserError(f"{said} (on the command line of {COMMAND})") from error
    training, model = parsed
    for part in parsed:
        for name, value in vars(part).items():  # what JSON a flag held, too
            require_finite(value, name, f"on the command line of {COMMAND}")
    model.model_name_or_path = script.model
    if isinstance(model.lora_target_modules, str) and re.fullmatch(r"\w+", model.lora_target_modules):
        # TRL unwraps a list of one, which PEFT then takes for a pattern of whole module paths.
        model.lora_target_modules = [model.lora_target_modules]
    if isinstance(training.optim_target_modules, list) and len(training.optim_target_modules) == 1:
        training.optim_target_modules = training.optim_target_modules[0]  # "all-linear" or a pattern
    script.check()
    _refuse_unsupported(training, model, to_run=not script.dry_run)
    _refuse_ignored(script, training)
    _refuse_unwatched(script, training)
    given = {*values, *(word[2:] for word in theirs if word.startswith("--"))}
    if script.dry_run and training.shares_paper_batch:
        steps = training.gradient_accumulation_steps
        training.per_device_train_batch_size = paper_share(script.dry_run_world, steps)
    for sentence in (*idle_among(given), *idle_of_model(given, model)):
        log.warning("%s", sentence)
    return script, training, model


def _divided(argv: list[str], parser: Parser) -> tuple[list[str], list[str], dict[str, Any]]:
    """The words for our loader, which refuses what nobody knows; those for TRL's parser; the keys of YAML files."""
    actions = {name: action for action in parser._actions for name in action.option_strings}
    truths = {name for name, hint in _hints().items() if plain_type(hint) is bool} | {RESUME}  # alone they mean true
    ours: list[str] = []
    theirs: list[str] = []
    values: dict[str, Any] = {}
    for flag, words in _uses(argv):
        name = flag[2:].replace("-", "_")
        action = actions.get(f"--{name}")
        if name == "config":
            values |= read_yaml(words[0]) if len(words) == 1 else {}
        if name == ALIAS:
            ours += ["--model", *words]
        elif action is None or name == "output_dir":
            ours += [flag, *words] if flag else words
        else:
            theirs += [f"--{name}", *(words or (["true"] if name in truths else []))]
    return ours, list_flags(theirs, _lists(parser)), values


def _uses(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Each use of a flag, and the words behind it; "" for words before the first flag."""
    uses: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, text = word.partition("=")
            uses.append((flag, [text] if equals else []))
        elif uses:
            uses[-1][1].append(word)
        else:
            uses.append(("", [word]))
    return uses


def _set_environment(variables: Any) -> None:
    """Set what stands under `env` in a YAML file, as TRL does."""
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise UserError("'env' in the --config file must be a mapping of environment variables.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def _refuse_unsupported(training: PaperTrainingArguments, model: ModelConfig, *, to_run: bool) -> None:
    """What transformers and TRL can do and this trainer would get wrong; `to_run`: not only to be predicted."""
    refuse_deepspeed(training)
    refuse_unsharded(training, to_run=to_run)
    refuse_data_parallel(training)
    if model.model_revision != "main":
        raise UserError(
            f"--model_revision '{model.model_revision}' is not supported. Download that revision and give its "
            "directory as --model."
        )


def _refuse_ignored(script: ScriptArguments, training: PaperTrainingArguments) -> None:
    """Options of transformers that this trainer would ignore, or that break its steps."""
    refuse_unhonoured(training, pairs=script.chosen.needs == "pairs")
    batch = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    require_positive(training, *batch)
    for name in ("max_grad_norm", "weight_decay"):
        if getattr(training, name) < 0:
            raise UserError(f"--{name} must be 0 or more, got {getattr(training, name)}.")
    if training.max_steps != -1 and training.max_steps < 1:
        raise UserError(
            f"--max_steps must be at least 1, got {training.max_steps}. Leave it out to train for --num_train_epochs."
        )
    if training.max_steps == -1 and training.num_train_epochs <= 0:
        raise UserError(
            f"--num_train_epochs must be above 0, got {training.num_train_epochs}: nothing would be trained."
        )
    if not all("=" in part for part in (training.optim_args or "=").replace(" ", "").split(",")):
        raise UserError(f"--optim_args '{training.optim_args}' must be written NAME=VALUE,NAME=VALUE.")


def _refuse_unwatched(script: ScriptArguments, training: PaperTrainingArguments) -> None:
    """Options of held-out groups that nobody watches, and held-out groups that are trained on."""
    if training.eval_strategy == "no":
        watched = ("eval_shards", "eval_split", "max_eval_samples", "early_stopping_patience")
        given = {name: getattr(script, name) for name in watched}
        defaults = {f.name: f.default for f in dataclasses.fields(ScriptArguments)}
        idle = [name for name, value in given.items() if value != defaults[name]]
        idle += [name for name in ("eval_on_start", "load_best_model_at_end") if getattr(training, name)]
        if training.save_strategy == "best":
            idle.append("save_strategy best")
        if idle:
            raise UserError(f"--{idle[0]} does nothing without --eval_strategy. Add --eval_strategy steps.")
    elif not script.eval_shards and (script.split == script.eval_split or "all" in (script.split, script.eval_split)):
        raise UserError(
            f"--eval_strategy would watch groups that are trained on: --split is '{script.split}', --eval_split "
            f"'{script.eval_split}'. Train on one half and watch the other, or give other sets as --eval_shards."
        )
    if script.early_stopping_patience and not training.load_best_model_at_end:
        save = f"--save_steps {_plain(training.eval_steps or training.logging_steps)}"
        raise UserError(
            "--early_stopping_patience stops when the best model is that many evaluations old. Add "
            f"--load_best_model_at_end true {save if training.eval_strategy == 'steps' else '--save_strategy epoch'}, "
            "so that the best one is kept."
        )
    by_steps = training.eval_strategy == training.save_strategy == "steps"
    if by_steps and training.load_best_model_at_end and training.save_steps > (training.eval_steps or 0):
        raise UserError(
            "--load_best_model_at_end takes the best of the models that were saved, and --save_steps "
            f"{_plain(training.save_steps)} saves fewer than --eval_steps {_plain(training.eval_steps)} looks at. Give "
            f"--save_steps {_plain(training.eval_steps)}, or --save_strategy best."
        )


def _plain(steps: float | None) -> str:
    return f"{steps:.0f}" if steps is not None and steps >= 1 else str(steps)
