"""What can only fail while a run starts or saves, tried before anything is written.

A run that stops at its first checkpoint because a small file cannot be written has lost all steps until then.
"""

import tempfile
from io import BytesIO
from typing import Any

import torch

from data.command.errors import UserError


def rehearse(trainer: Any) -> None:
    """Make a run's data loader, optimiser and schedule, and save all but the weights into a folder that is removed.

    The optimiser is kept, for it may hook itself into the parameters; with FSDP, whose parameters are others, a new one
    is made.

    Args:
        trainer: a transformers Trainer that has not trained yet.

    Raises:
        UserError: the model's generation config cannot be saved.
        Exception: whatever transformers raises for options that it does not take.
    """
    _start(trainer)
    if trainer.args.should_save:
        _save(trainer)


def _start(trainer: Any) -> None:
    with torch.random.fork_rng(devices=[]):  # a run draws what it drew without a rehearsal
        *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    trainer.create_optimizer()
    stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=trainer.args.learning_rate)
    trainer.create_scheduler(steps, stand_in)  # it would change the learning rate of the optimiser itself
    trainer.lr_scheduler, trainer._created_lr_scheduler = None, False
    if trainer.is_fsdp_enabled:
        trainer.optimizer = None


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
            f"such model: {' '.join(str(error).split())} Correct the file in the directory of --model."
        ) from error
