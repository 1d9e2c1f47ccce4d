"""Sharded training: two FSDP2 processes, as accelerate wraps, saves and loads them, train as one process does."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset

from data.command.errors import UserError
from data.shards import NegativeSet
from tests.support.commands import ROOT
from tests.support.processes import TwoProcesses
from tests.support.sharded import launched_with_fsdp
from tests.support.tiny import make_negative_set, save_tiny_model
from tests.support.training import cli, make_trainer, metrics
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import Collator, ContrastiveGroups
from trainer.run import main
from trainer.sharding import refuse_unsharded
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds

ACCUMULATION = 2
# The norm that gradients are clipped to, well below theirs.
CLIP = 0.5


def trainer_of(processes: int, model: Path, negative_set: Path, out: Path, **options: Any) -> ContrastiveTrainer:
    """13 groups in steps of 12; one held-out group."""
    trainer = make_trainer(
        model, negative_set, out, per_device_train_batch_size=12 // ACCUMULATION // processes, max_grad_norm=CLIP,
        gradient_accumulation_steps=ACCUMULATION, learning_rate=0.1, optim="sgd", optim_args="momentum=0.9",
        num_train_epochs=1, logging_steps=1, report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    for module in trainer.model.modules():  # type: ignore[union-attr]
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # as trainer.run does
    trainer.eval_dataset = Subset(ContrastiveGroups.of([NegativeSet(str(negative_set))], "train"), [5])
    return trainer


def train(trainer: ContrastiveTrainer) -> dict[str, Any]:
    """Losses and gradients' norms of the steps, metrics, parameters, passes of each micro-batch, and dtypes."""
    passes: list[int] = []
    dtypes: dict[str, Any] = {}
    step, backward = trainer.training_step, trainer.accelerator.backward

    def training_step(model: Any, inputs: Any, *more: Any) -> torch.Tensor:
        passes.append(len(inputs))
        return step(model, inputs, *more)

    def note_dtypes(model: Any, _: Any, output: Any) -> None:
        dtypes["output"] = output.dtype

    def backward_noted(loss: torch.Tensor) -> None:
        backward(loss)
        parameters = list(trainer.model.parameters())  # type: ignore[union-attr]
        dtypes["masters"] = {parameter.dtype for parameter in parameters}
        dtypes["gradients"] = {parameter.grad.dtype for parameter in parameters}  # type: ignore[union-attr]

    trainer.training_step = training_step  # type: ignore[method-assign]
    trainer.accelerator.backward = backward_noted  # type: ignore[method-assign]
    model: Any = trainer.model
    model.register_forward_hook(note_dtypes)
    block = model.transformer.h[0] if model.config.model_type == "gpt2" else model.model.layers[0]
    block.register_forward_pre_hook(lambda *_: dtypes.update(compute={p.dtype for p in block.parameters()}))
    trainer.train()
    weights, kinds = _parameters(trainer), {type(parameter.data) for parameter in model.parameters()}
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return {
        "losses": [log["loss"] for log in logs],
        "norms": [log["grad_norm"] for log in logs],
        "eval_loss": trainer.evaluate()["eval_loss"],
        "parameters": weights,
        "kinds": kinds,
        "units": sum(isinstance(module, FSDPModule) for module in model.modules()),
        "passes": passes,
        "dtypes": dtypes,
    }


def _parameters(trainer: ContrastiveTrainer) -> dict[str, torch.Tensor]:
    model: Any = trainer.model
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {name: w.full_tensor() if isinstance(w, DTensor) else w.clone() for name, w in weights.items()}


def runs_of_two(models: dict[str, Path], negative_set: Path, out: Path) -> None:
    """All runs of two processes that this file looks at; in each, one process has a pass per group, the other one."""

    def trainer(model: str, place: Path) -> ContrastiveTrainer:
        trainer = trainer_of(2, models[model], negative_set, place, ddp_backend="gloo")
        row_tokens = 1 if trainer.accelerator.process_index == 0 else 1000
        trainer.data_collator = Collator(trainer.prepared.layout, row_tokens)  # type: ignore[assignment]
        return trainer

    for model, precision in (("llama", "no"), ("gpt2", "no"), ("qwen2", "no"), ("llama", "bf16")):
        launched_with_fsdp(precision)
        made = trainer(model, out / f"{model}-{precision}")
        made.args.save_strategy, made.args.save_steps = "steps", 1  # type: ignore[assignment]
        torch.save(train(made), out / f"{model}-{precision}-{made.accelerator.process_index}.pt")
    launched_with_fsdp("no")
    resumed = trainer("llama", out / "resumed")
    resumed.train(resume_from_checkpoint=str(out / "llama-no" / "checkpoint-1"))
    torch.save(_parameters(resumed), out / f"resumed-{resumed.accelerator.process_index}.pt")
    for run, options in COMMANDS.items():
        launched_with_fsdp("no", run)
        words = [*command(models["llama"], negative_set, out / run, "2"), *options, "--ddp_backend", "gloo"]
        assert main(words) in (0, None)
        words[words.index("--output_dir") + 1] = f"{out / run}-resumed"
        assert main([*words, "--resume_from_checkpoint", str(out / run / "checkpoint-2")]) in (0, None)


LORA = ["--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_dropout", "0"]
# By the type of the state dict.
COMMANDS = {"SHARDED_STATE_DICT": [], "FULL_STATE_DICT": LORA}


def command(model: Path, negative_set: Path, output: Path, batch: str) -> list[str]:
    """3 steps of AdamW, as a user starts them; rows so short that steps have several passes."""
    words = cli(model, negative_set, output, "--max_steps", "3", "--save_steps", "2", "--row_tokens", "128")
    words[words.index("--per_device_train_batch_size") + 1] = batch
    return [*words, "--logging_steps", "1", "--report_to", "none"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path, Path]:
    """Models with tied heads and (qwen2) one without, a set of 13 groups, the directory of what two processes made."""
    folder = tmp_path_factory.mktemp("fsdp")
    models = {name: save_tiny_model(folder / name, name) for name in ("llama", "gpt2", "qwen2")}
    make_negative_set(folder / "set", models["llama"], num_groups=13, num_negatives=2)
    (folder / "out").mkdir()
    TwoProcesses.start(runs_of_two, models, folder / "set", folder / "out").finish()
    return models, folder / "set", folder / "out"


def of_both(out: Path, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(out / f"{run}-{rank}.pt", weights_only=False) for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_two_fsdp_processes_train_like_one(architecture: str, made: Any, tmp_path: Path) -> None:
    """Micro-batches of unequally many passes, steps that leave one process without groups, held-out groups, clipping.

    The head's weight is sharded too, and may be the embeddings'.
    """
    models, negative_set, out = made
    first, second = of_both(out, f"{architecture}-no")
    assert (first["passes"], second["passes"]) == ([3, 3, 1, 1], [1, 1, 1, 1])
    assert first["kinds"] == {DTensor}
    assert first["units"] >= 3  # blocks of their own, and the root
    alone = trainer_of(1, models[architecture], negative_set, tmp_path)
    start = {name: p.detach().clone() for name, p in alone.model.named_parameters()}  # type: ignore[union-attr]
    expected = train(alone)
    assert len(expected["losses"]) == 2
    assert min(expected["norms"]) > 2 * CLIP  # every step is clipped
    # After a step the losses differ by rounding: each pass's gradient is summed over the processes by itself.
    for name in ("losses", "norms", "eval_loss"):
        assert first[name] == pytest.approx(expected[name], rel=1e-3), name
        assert second[name] == first[name]
    moved = max((p - start[name]).abs().max().item() for name, p in expected["parameters"].items())
    assert moved > 1e-3
    for name, parameter in expected["parameters"].items():
        torch.testing.assert_close(first["parameters"][name], parameter, rtol=0, atol=1e-4 * moved, msg=name)


def test_mixed_precision_keeps_masters_sums_and_log_probabilities_in_float32(made: Any, tmp_path: Path) -> None:
    models, negative_set, out = made
    first, _ = of_both(out, "llama-bf16")
    assert first["dtypes"] == {
        "compute": {torch.bfloat16},
        "output": torch.float32,
        "masters": {torch.float32},
        "gradients": {torch.float32},
    }
    alone = train(trainer_of(1, models["llama"], negative_set, tmp_path, bf16=True))
    exact, _ = of_both(out, "llama-no")
    # log K to within rounding of the matrix products, as in one process; rounded to bfloat16, tokens moved it by 0.8.
    assert first["losses"][0] == pytest.approx(exact["losses"][0], abs=0.05)
    assert first["losses"] == pytest.approx(alone["losses"], abs=0.05)
    assert first["norms"] == pytest.approx(alone["norms"], rel=0.05)


def test_a_resumed_run_ends_as_one_that_was_never_stopped(made: Any) -> None:
    *_, out = made
    for name in ("pytorch_model_fsdp.bin", "optimizer.bin", "model.safetensors"):
        assert (out / "llama-no" / "checkpoint-1" / name).is_file()
    whole, _ = of_both(out, "llama-no")
    resumed, _ = of_both(out, "resumed")
    for name, weight in whole["parameters"].items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.parametrize("run", COMMANDS)
def test_the_command_resumes_exactly_and_ends_with_a_model_however_checkpoints_are_saved(
    run: str, made: Any, tmp_path: Path
) -> None:
    """Full parameters from sharded checkpoints, and an adapter from whole ones, with AdamW."""
    models, negative_set, out = made
    kept = {"SHARDED_STATE_DICT": ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata")}
    for name in kept.get(run, ("pytorch_model_fsdp.bin", "optimizer.bin")):
        assert (out / run / "checkpoint-2" / name).is_file()
    assert main([*command(models["llama"], negative_set, tmp_path, "4"), *COMMANDS[run]]) in (0, None)
    weights = "adapter_model.safetensors" if COMMANDS[run] else "model.safetensors"
    alone, whole, resumed = (load_file(place / weights) for place in (tmp_path, out / run, out / f"{run}-resumed"))
    assert whole.keys() == resumed.keys() == alone.keys()  # a tied head once
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    expected, found = ([log for log in metrics(place) if "grad_norm" in log] for place in (tmp_path, out / run))
    assert len(expected) == len(found) == 3
    for one, two in zip(expected, found, strict=True):
        assert (two["loss"], two["grad_norm"]) == pytest.approx((one["loss"], one["grad_norm"]), rel=2e-3)


def with_fault(reference: Path, negative_set: Path, out: Path) -> None:
    """In the second process the first loss is not a number."""
    share = ContrastiveTrainer._share

    def fault_stub(self: ContrastiveTrainer, *arguments: Any) -> torch.Tensor:
        return share(self, *arguments) * (torch.nan if self.accelerator.process_index == 1 else 1.0)

    ContrastiveTrainer._share = fault_stub  # type: ignore[method-assign]
    launched_with_fsdp("no")
    with pytest.raises(UserError, match="of step 1 is not finite"):
        trainer_of(2, reference, negative_set, out, ddp_backend="gloo").train()


def test_two_fsdp_processes_stop_together_where_one_has_a_value_that_is_not_finite(made: Any, tmp_path: Path) -> None:
    models, negative_set, _ = made
    TwoProcesses.start(with_fault, models["llama"], negative_set, tmp_path).finish()


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_the_recipes_are_accelerates(name: str, kind: str) -> None:
    config: Any = load_config_from_file(str(ROOT / f"recipes/accelerate/{name}.yaml"))
    assert str(config.distributed_type).endswith(kind)
    assert config.mixed_precision == "bf16"
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # one directory that loads anywhere


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("NO", {}, "accelerate shards over GPUs only: here each process would hold the whole model"),
        ("MULTI_CPU", {}, "accelerate shards over GPUs only: here each process would hold the whole model"),
        ("MULTI_GPU", {"FSDP_VERSION": "1"}, "FSDP 1 is not supported"),
        ("MULTI_GPU", {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading is not supported"),
        ("MULTI_GPU", {}, None),
        ("MULTI_CPU", {"ACCELERATE_USE_FSDP": "false"}, None),
    ],
)
def test_fsdp_that_would_not_shard_is_refused(
    kind: str, settings: dict[str, str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **settings}.items():
        monkeypatch.setenv(name, value)
    training = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(training, "distributed_state", SimpleNamespace(distributed_type=DistributedType[kind]))
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        refuse_unsharded(training)
