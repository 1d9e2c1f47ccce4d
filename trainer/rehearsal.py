"""What can only fail while a run starts or saves, tried before anything is written.

A run that stops at its first checkpoint because a small file cannot be written has lost all steps until then.
"""

import copy
import logging
import tempfile
from io import BytesIO
from typing import Any

import torch
from torch.utils.data import Subset

from data.command.errors import UserError, did_you_mean
from data.command.terminal import one_line

log = logging.getLogger(__name__)

# What the names of the optimisers that project the gradients of --optim_target_modules hold.
PROJECTED = "galore", "apollo"


def rehearse(trainer: Any) -> None:
    """Make a run's data loader, optimiser and schedule, and save all but the weights into a folder that is removed.

    Where the best model is chosen by a metric, its name is looked up too.

    The optimiser is kept, for it may hook itself into the parameters; with FSDP, whose parameters are others, a new one
    is made.

    Args:
        trainer: a transformers Trainer that has not trained yet.

    Raises:
        UserError: the model's generation config cannot be saved, or there is no such metric.
        Exception: whatever transformers raises for options that it does not take.
    """
    _start(trainer)
    _evaluate(trainer)
    if trainer.args.should_save:
        _save(trainer)


def _start(trainer: Any) -> None:
    with torch.random.fork_rng(devices=[]):  # a run draws what it drew without a rehearsal
        *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    trainer.create_optimizer()
    _say_what_the_optimiser_ignores(trainer)
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=trainer.args.learning_rate)
    trainer.create_scheduler(steps, stand_in)  # it would change the learning rate of the optimiser itself
    trainer.lr_scheduler, trainer._created_lr_scheduler = None, False
    if trainer.is_fsdp_enabled:
        trainer.optimizer = None


def _say_what_the_optimiser_ignores(trainer: Any) -> None:
    """Warn of each part of --optim_args, and of --optim_target_modules, without which the optimiser is the same."""
    name = trainer.args.optim.value
    if any(kind in name for kind in PROJECTED):  # these heed both, and their settings hold the parameters
        return

    def settings(**changed: Any) -> Any:
        arguments = copy.copy(trainer.args)
        vars(arguments).update(changed)
        return trainer.get_optimizer_cls_and_kwargs(arguments, trainer.model)

    parts = [part for part in (trainer.args.optim_args or "").replace(" ", "").split(",") if part]
    others = {part: {"optim_args": ",".join(other for other in parts if other != part)} for part in parts}
    ignored = [f"--optim_args {part}" for part, changed in others.items() if settings(**changed) == settings()]
    if trainer.args.optim_target_modules:
        ignored.append("--optim_target_modules")
    for option in ignored:
        log.warning("%s changes nothing with --optim %s.", option, name)


def _evaluate(trainer: Any) -> None:
    """The metric by which the best model is chosen must be among those of held-out groups; one is enough to see."""
    metric = trainer.args.metric_for_best_model
    dataset = trainer.eval_dataset
    if metric is None or metric.removeprefix("eval_") == "loss" or not dataset or not hasattr(trainer, "metric_names"):
        return
    if trainer.is_fsdp_enabled:  # the model is on no device yet
        return
    found = trainer.metric_names(Subset(dataset, [0]))
    if metric.removeprefix("eval_") not in found:
        raise UserError(
            f"--metric_for_best_model '{metric}' is none of the metrics of held-out groups."
            f"{did_you_mean(metric, found)} Known: {', '.join(found)}."
        )


def _save(trainer: Any) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    with tempfile.TemporaryDirectory() as folder:
        if adapters := getattr(model, "peft_config", None):
            for config in adapters.values():
                config.save_pretrained(folder)
        else:
            model.config.save_pretrained(folder)
            _save_generation_config(model, folder)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
    torch.save(trainer.args, BytesIO())


def _save_generation_config(model: Any, folder: str) -> None:
    if not model.can_generate():
        return
    try:
        model.generation_config.save_pretrained(folder)
    except ValueError as error:
        raise UserError(
            f"generation_config.json of '{model.config._name_or_path}' contradicts itself, and transformers saves no "
            f"such model: {one_line(str(error))} Correct the file in the directory of --model."
        ) from error
