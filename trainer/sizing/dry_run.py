"""`python -m trainer.run ... --dry_run`: what a run will take, without weights, and whether it fits."""

import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from data.command.errors import UserError
from data.command.terminal import say
from data.command.wording import counted, size
from data.models import check_causal, load_tokenizer, tokenizer_hash
from trainer.assembly import row_budget
from trainer.groups.dataset import Collator
from trainer.groups.sampler import data_seed
from trainer.groups.training_data import load_training_data
from trainer.objectives.base import Objective
from trainer.policy import Policy
from trainer.resume import Needs
from trainer.setup import SETUP_ERRORS, cannot_set_up
from trainer.sizing.devices import device_of
from trainer.sizing.first_steps import FirstSteps, LaidOut
from trainer.sizing.predicted import Case, Prediction, predict
from trainer.sizing.savings import advice
from trainer.sizing.size_table import advice_table, table
from trainer.sizing.stand_in import layout_of

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments
    from trainer.config import ScriptArguments

log = logging.getLogger(__name__)


def dry_run(script: "ScriptArguments", training: "PaperTrainingArguments", model_config: "ModelConfig") -> None:
    """Print what a run will take. Writes nothing, and reads no weights.

    Raises:
        UserError: a run that does not fit or cannot be predicted, or whose config or data any run refuses.
    """
    _refuse_unknown(script, training, model_config)
    device = device_of(script.dry_run_device)
    directory = check_causal(script.model, needs_weights=False)
    script = dataclasses.replace(script, model=str(directory))  # where a hub id's weights are not asked for again
    tokenizer = load_tokenizer(script.model)
    identity = {"tokenizer_sha256": tokenizer_hash(tokenizer)}
    data = load_training_data(script, tokenizer, identity, seed=data_seed(training), watched=False)
    objective, options = script.chosen, script.options
    policy = Policy(directory, model_config, from_scratch=True, dropout=objective.dropout)
    sharded = Needs.of(training, model_config).fsdp
    case = Case(policy, training, objective, options, device, script.dry_run_world, sharded)
    first = FirstSteps.of(data.train, training, script.dry_run_world)
    row_tokens = row_budget(script.row_tokens, device.kind)
    try:
        layout = layout_of(policy)
        copies = objective.copies(options)

        def laid_out(first: FirstSteps, tokens: int) -> LaidOut:
            return first.laid_out(Collator(layout, tokens, data.train.strategies, copies))

        def predicted(other: Case, tokens: int) -> Prediction:
            of_world = first if other.world == case.world else FirstSteps.of(data.train, other.training, other.world)
            steps = laid_out(of_world, tokens)
            return predict(other, layout, steps.largest, accumulates=steps.most_passes > 1)

        found = predicted(case, row_tokens)
        steps = laid_out(first, row_tokens)
        say(table(case, found, first, steps, layout, row_tokens, script.dry_run_utilisation))
        if found.peak <= device.usable:
            return
        advised = list(advice(case, row_tokens, predicted))
    except UserError:
        raise
    except SETUP_ERRORS as error:
        raise cannot_set_up(script.model, error) from error
    if advised:
        say(f"\n{advice_table(advised, device)}")
    fitting = [
        f"{option.words} ({size(other.peak)}{option.note and f'; {option.note}'})"
        for option, other in advised
        if other.peak <= device.usable
    ]
    otherwise = "Take a larger device, more of them with --fsdp, or a smaller model."
    remedy = f"It would with {' or '.join(fitting)}." if fitting else otherwise
    raise UserError(
        f"this run does not fit: {size(found.peak)} are predicted for the largest pass of the first "
        f"{counted(len(steps.passes), 'step')}, {size(device.usable)} of {device.name} are usable. {remedy}"
    )


def _refuse_unknown(script: "ScriptArguments", training: "PaperTrainingArguments", model_config: "ModelConfig") -> None:
    if training.world_size > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--dry_run is one process. Start it without a launcher, with --dry_run_world N for N devices.")
    objective = script.chosen
    if objective.needs == "pairs" or type(objective).own_trainer is not Objective.own_trainer:
        raise UserError(
            f"--dry_run predicts steps of this trainer; objective '{objective.name}' brings one of its own. Leave "
            "--dry_run out."
        )
    if model_config.load_in_4bit or model_config.load_in_8bit:
        raise UserError("--dry_run knows no quantised weights. Leave out --load_in_4bit and --load_in_8bit.")
    if training.torch_compile:
        log.warning("--torch_compile is not predicted: what it fuses takes less.")
    if script.skip_below is not None:
        log.warning("--skip_below is not predicted: while nothing is decided, a pass goes back whole.")
