"""Sharded training: two FSDP2 processes train as one does; the accelerate recipes are accelerate's.

accelerate has FSDP on GPUs only, so the model is sharded here and the steps of transformers' loop are made here; all
else is the trainer's own.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import Subset

from data.command.errors import UserError
from data.shards import NegativeSet
from tests.support.commands import ROOT
from tests.support.processes import TwoProcesses
from tests.support.tiny import make_negative_set, save_tiny_model
from tests.support.training import make_trainer
from trainer.groups.dataset import Collator, ContrastiveGroups
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds

ACCUMULATION = 2


def train(trainer: ContrastiveTrainer) -> dict[str, Any]:
    """An epoch as transformers trains it. Losses of the steps, metrics, parameters, passes of each micro-batch."""
    model: Any = trainer.model
    trainer.create_optimizer()
    optimizer: Any = trainer.optimizer
    loader = trainer.get_train_dataloader()
    batches, losses, passes = iter(loader), [], []
    for _ in range(len(loader) // ACCUMULATION):
        step, items = trainer.get_batch_samples(batches, ACCUMULATION, trainer.args.device)
        total = torch.zeros(())
        for index, inputs in enumerate(step):
            last = index == len(step) - 1
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else trainer.accelerator.no_sync(model):
                total += trainer.training_step(model, inputs, items)
            passes.append(len(inputs))
        optimizer.step()
        optimizer.zero_grad()
        trainer.state.global_step += 1
        losses.append(trainer.accelerator.reduce(total, "mean").item())  # type: ignore[union-attr]
    metrics = trainer.evaluate()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in parameters.items()}
    return {"losses": losses, "metrics": metrics, "parameters": whole, "passes": passes}


def trainer_of(processes: int, reference: Path, negative_set: Path, out: Path) -> ContrastiveTrainer:
    """13 groups in steps of 12; one held-out group."""
    options: dict[str, Any] = {"ddp_backend": "gloo"} if processes > 1 else {}
    trainer = make_trainer(
        reference, negative_set, out, per_device_train_batch_size=12 // ACCUMULATION // processes, optim="sgd",
        gradient_accumulation_steps=ACCUMULATION, learning_rate=1e-2, report_to="none", **options,
    )  # fmt: skip
    for module in trainer.model.modules():  # type: ignore[union-attr]
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # as trainer.run does
    trainer.eval_dataset = Subset(ContrastiveGroups.of([NegativeSet(str(negative_set))], "train"), [5])
    return trainer


def train_sharded(reference: Path, negative_set: Path, out: Path) -> None:
    """In each of two processes: one lays out each group in a pass of its own, the other all in one pass."""
    trainer = trainer_of(2, reference, negative_set, out)
    model: Any = trainer.model
    trainer.data_collator = Collator(trainer.prepared.layout, 1 if trainer.accelerator.process_index == 0 else 1000)  # type: ignore[assignment]
    mesh = init_device_mesh("cpu", (2,))
    for block in model.transformer.h if model.config.model_type == "gpt2" else model.model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # What accelerate says of a model that it has sharded.
    trainer.is_fsdp_enabled = True
    type(trainer.accelerator).is_fsdp2 = property(lambda _: True)  # type: ignore[assignment]
    found = train(trainer)
    torch.save(found, out / f"{trainer.accelerator.process_index}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_two_fsdp_processes_train_like_one(architecture: str, tmp_path: Path) -> None:
    """Micro-batches of unequally many passes, a step that leaves one process without groups, and held-out groups too.

    The head's weight is one of the sharded parameters.
    """
    reference = save_tiny_model(tmp_path / "reference", architecture)
    make_negative_set(tmp_path / "set", reference, num_groups=13, num_negatives=2)
    TwoProcesses.start(train_sharded, reference, tmp_path / "set", tmp_path).finish()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (first["passes"], second["passes"]) == ([3, 3, 1, 1], [1, 1, 1, 1])
    alone = trainer_of(1, reference, tmp_path / "set", tmp_path / "alone")
    start = {name: p.detach().clone() for name, p in alone.model.named_parameters()}  # type: ignore[union-attr]
    expected = train(alone)
    assert len(expected["losses"]) == 2
    # After a step the losses differ by rounding: each pass's gradient is summed over the processes by itself.
    assert first["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert first["metrics"]["eval_loss"] == pytest.approx(expected["metrics"]["eval_loss"], rel=1e-4)
    assert second["metrics"]["eval_loss"] == first["metrics"]["eval_loss"]
    moved = max((p - start[name]).abs().max().item() for name, p in expected["parameters"].items())
    assert moved > 1e-3
    for name, parameter in expected["parameters"].items():
        torch.testing.assert_close(first["parameters"][name], parameter, rtol=0, atol=1e-4 * moved, msg=name)


def sharded_with_fault(reference: Path, negative_set: Path, out: Path) -> None:
    """In the second process the first loss is not a number."""
    share = ContrastiveTrainer._share

    def fault_stub(self: ContrastiveTrainer, *arguments: Any) -> torch.Tensor:
        return share(self, *arguments) * (torch.nan if self.accelerator.process_index == 1 else 1.0)

    ContrastiveTrainer._share = fault_stub  # type: ignore[method-assign]
    with pytest.raises(UserError, match="of step 1 is not finite"):
        train_sharded(reference, negative_set, out)


def test_two_fsdp_processes_stop_together_where_one_has_a_value_that_is_not_finite(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    TwoProcesses.start(sharded_with_fault, reference, negative_set, tmp_path).finish()


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_the_recipes_are_accelerates(name: str, kind: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config: Any = load_config_from_file(str(ROOT / f"recipes/accelerate/{name}.yaml"))
    assert str(config.distributed_type).endswith(kind)
    assert config.mixed_precision == "bf16"
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # one directory that loads anywhere
