"""How a trainer is made, the objective's own or the one for packed groups."""

import logging
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, first_line
from data.command.wording import counted

if TYPE_CHECKING:
    from trainer.config import ScriptArguments
    from trainer.ingredients import Setup
    from trainer.objectives.base import Objective
    from trainer.trainer import ContrastiveTrainer

log = logging.getLogger(__name__)

# What transformers, TRL, PEFT, torch and trackers raise for options, files, models and logins that they do not take: of
# trackers also classes of their own.
SETUP_ERRORS = (Exception,)
USUAL_ERRORS = (ImportError, ValueError, OSError, KeyError, RuntimeError, TypeError)


def make_trainer(script: "ScriptArguments", setup: "Setup") -> Any:
    """The objective's own trainer, or the one for packed groups; it could start and save, see `trainer.rehearsal`.

    Writes nothing; of the output directory transformers makes at most the empty folder.

    Raises:
        UserError: the model cannot be loaded, trained or saved with these options, or the data does not suit the
            objective.
    """
    from transformers import set_seed

    from trainer.groups.sampler import EpochOfSampler
    from trainer.monitor.log_lines import LogLines
    from trainer.rehearsal import rehearse

    set_seed(setup.training.seed)
    try:
        trainer = script.chosen.own_trainer(setup, script.options)
        if trainer is None:
            trainer = make_group_trainer(script.chosen, setup, script.options)
        else:  # ours has it
            trainer.add_callback(EpochOfSampler())
            LogLines.replace_in(trainer, ranking=script.chosen.learns_order)
        rehearse(trainer)
        return trainer
    except UserError:
        raise
    except SETUP_ERRORS as error:
        raise cannot_set_up(script.model, error) from error


def cannot_set_up(model: str, error: BaseException) -> UserError:
    """One of `SETUP_ERRORS` in a line; one that no library uses for such things with its kind, as it may be a fault."""
    log.debug("cannot set up the training", exc_info=error)
    kind = "" if isinstance(error, USUAL_ERRORS) else f"{type(error).__name__}: "
    return UserError(f"cannot set up the training of model '{model}' with these options: {kind}{first_line(error)}")


def make_group_trainer(objective: "Objective", setup: "Setup", options: Any) -> "ContrastiveTrainer":
    """The trainer of objectives whose terms are computed from packed groups.

    Raises:
        UserError: the objective is trained on pairs, so that it must bring a trainer of its own.
    """
    if objective.needs == "pairs":
        raise UserError(
            f"objective '{objective.name}' needs pairs but brings no trainer for them. Return one from its "
            "`own_trainer`, or let it need groups."
        )
    from trainer.trainer import ContrastiveTrainer

    trainer = ContrastiveTrainer(
        setup.policy.load(),
        setup.training,
        train_dataset=setup.data.train,
        eval_dataset=setup.data.held_out,
        processing_class=setup.tokenizer,
        objective=objective,
        options=options,
        peft_config=setup.policy.adapter,
        row_tokens=setup.row_tokens,
        skip_below=setup.skip_below,
    )
    log.info(
        "%s, %s layout, at most %s per pass",
        objective.name,
        trainer.prepared.layout,
        counted(setup.row_tokens, "token"),
    )
    return trainer
