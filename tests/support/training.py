"""Training runs that several test files make: trainers, command lines, callbacks' events by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from data.shards import NegativeSet
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import ContrastiveGroups
from trainer.groups.store import GroupStore
from trainer.monitor.diagnosis import Diagnosis
from trainer.objectives import OBJECTIVES
from trainer.trainer import ContrastiveTrainer


def make_trainer(reference: Path, negative_set: Path, tmp_path: Path, **options: Any) -> ContrastiveTrainer:
    """A trainer on the negative set; `objective_options` go to the objective, what is not named here to the trainer."""
    objective = OBJECTIVES.load(options.pop("objective", "cpo"))
    chosen = {"pss_passes": 2} if objective.name == "pss" else {}
    objective_options = objective.Options(**chosen, **options.pop("objective_options", {}))
    row_tokens, skip_below = options.pop("row_tokens", 256), options.pop("skip_below", None)
    adapter = options.pop("peft_config", None)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=options.pop("dtype", torch.float32))
    negatives = NegativeSet(str(negative_set))
    dataset = (
        ContrastiveGroups(GroupStore([negatives], "train"))
        if objective.needs == "truths"
        else ContrastiveGroups.of([negatives], "train", options.pop("use", None))
    )
    arguments = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", **options)
    return ContrastiveTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        objective=objective,
        options=objective_options,
        peft_config=adapter,
        row_tokens=row_tokens,
        skip_below=skip_below,
    )


def first_gradient(trainer: ContrastiveTrainer) -> dict[str, torch.Tensor]:
    """The gradient of the first optimiser step, before clipping."""
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        if not gradients:
            assert trainer.model is not None
            for name, parameter in trainer.model.named_parameters():
                assert parameter.grad is not None
                gradients[name] = parameter.grad.clone()

    trainer.args.max_grad_norm = 0.0
    trainer.create_optimizer_and_scheduler(1)
    assert isinstance(trainer.optimizer, torch.optim.Optimizer)
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return gradients


def cli(reference: Path, negative_set: Path, output: Path, *more: str) -> list[str]:
    return [
        "--objective", "cpo-rank", "--shards", str(negative_set), "--model", str(reference),
        "--output_dir", str(output), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3",
        "--use_cpu", "true", "--disable_tqdm", "true", *more,
    ]  # fmt: skip


class Infinite(torch.autograd.Function):
    """Finite in value, infinite in gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradients[0] * torch.inf


class Run:
    """A training run by hand: the callbacks' events with transformers' own arguments, state and control."""

    def __init__(self, output: Path, *callbacks: TrainerCallback, main: bool = True, checkpoint: str | None = None):
        self.args = TrainingArguments(output_dir=str(output), use_cpu=True, report_to="none")
        self.state = TrainerState.load_from_json(checkpoint) if checkpoint else TrainerState()
        self.state.is_world_process_zero = main
        self.callbacks = callbacks
        self.event("on_train_begin")

    def event(self, name: str, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self.args, self.state, TrainerControl(), **more)

    def log(self, step: int, **logs: Any) -> None:
        self.state.global_step = step
        self.state.log_history.append({**logs, "step": step})
        self.event("on_log", logs=logs)

    def save(self, path: Path) -> str:
        for callback in self.callbacks:
            if isinstance(callback, Diagnosis):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()  # type: ignore[index, call-overload]
        self.state.save_to_json(str(path))
        self.event("on_save")
        return str(path)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
