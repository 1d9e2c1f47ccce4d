"""Nothing is left on the CPU: each objective's steps and metrics, and the scorer, run on `pretended_device`.

What reduces over tokens is float32 also where weights are bfloat16.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Subset
from transformers import AutoTokenizer, TrainingArguments
from trl import ModelConfig

from data.shards import NegativeSet
from tests.support.pretended_device import DEVICE, Elsewhere, OtherDevice, pretended_device
from tests.support.tiny import make_negative_set, tiny_model
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import ContrastiveGroups, PackedGroups
from trainer.ingredients import Setup, TrainingData
from trainer.objectives import OBJECTIVES
from trainer.objectives.base import Objective, Term
from trainer.objectives.cpo import CPO
from trainer.policy import Policy
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import candidate_logps, prepare_model
from trainer.scoring.scorer import Scorer
from trainer.setup import make_group_trainer

GROUPS = [Continuations([1, 2, 3], [[4, 5], [6, 7, 8]]), Continuations([9], [[4, 5]])]
STEPS = 2


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pretended device is the one that transformers and accelerate train on."""
    monkeypatch.setattr(TrainingArguments, "device", property(lambda training: training._setup_devices and DEVICE))
    monkeypatch.setattr(Accelerator, "device", DEVICE)
    with pretended_device():
        yield


@pytest.fixture(scope="module")
def two_strategies(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "negatives"
    make_negative_set(out, reference, num_groups=12, num_negatives=2, strategies=("an", "rn"))
    return out


def make_trainer(
    objective: Objective, reference: Path, negatives: Path, out: Path, dtype: str = "bfloat16", **given: Any
) -> Any:
    """The trainer of a run of two steps, each of several forward passes; the first two groups are held out.

    Args:
        given: options of the objective, `skip_below`, and `lora` with gradient checkpointing.
    """
    skip_below, lora = given.pop("skip_below", None), given.pop("lora", False)
    training = PaperTrainingArguments(
        output_dir=str(out), use_cpu=True, save_strategy="no", report_to="none", max_steps=STEPS, logging_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, optim="adamw_torch", eval_strategy="steps",
        eval_steps=1, learning_rate=1e-3, include_num_input_tokens_seen="non_padding",
        gradient_checkpointing=lora,
    )  # fmt: skip
    use = {"truths": None, "groups": "an=2,rn=2", "pairs": "an=2"}[objective.needs]
    sets = [NegativeSet(str(negatives))]
    dataset = ContrastiveGroups.of(sets, "train", use)
    data = TrainingData(dataset, Subset(dataset, range(2)), {}, [])
    adapted = {"use_peft": True, "lora_target_modules": ["all-linear"]} if lora else {}
    policy = Policy(reference, ModelConfig(dtype=dtype, **adapted), from_scratch=False, dropout=False)
    setup = Setup(policy, data, training, AutoTokenizer.from_pretrained(reference), 64, skip_below)
    options = objective.Options(**given)
    return objective.own_trainer(setup, options) or make_group_trainer(objective, setup, options)


def kept(function: Callable[..., Any], tensors: list[torch.Tensor]) -> Callable[..., Any]:
    """The function of an objective; the log-probabilities that it is given and what it returns go into the list."""

    def wrapper(policy_logps: torch.Tensor, groups: PackedGroups, options: Any) -> Any:
        found = function(policy_logps, groups, options)
        values = [value.total if isinstance(value, Term) else value for value in found.values()]
        tensors.extend([policy_logps, *values])
        return found

    return wrapper


def logged(trainer: Any) -> list[dict[str, float]]:
    timed = "runtime", "per_second", "flos"
    lines = trainer.state.log_history
    return [{k: v for k, v in line.items() if not any(word in k for word in timed)} for line in lines]


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_a_run_stays_on_its_device_and_reduces_in_float32(
    name: str, reference: Path, two_strategies: Path, tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, reduced = OBJECTIVES.load(name), []
    for function in ("terms", "metrics"):
        monkeypatch.setattr(objective, function, kept(getattr(objective, function), reduced))
    trainer = make_trainer(objective, reference, two_strategies, tmp_path)
    trainer.train()

    weights = list(trainer.model.parameters())
    assert {(type(w.data), w.dtype) for w in weights} == {(Elsewhere, torch.bfloat16)}
    lines = logged(trainer)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "eval_loss" in line] == [1, 2]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    if objective.needs != "pairs":  # those are TRL's
        assert {(type(tensor.detach()), tensor.dtype) for tensor in reduced} == {(Elsewhere, torch.float32)}


@pytest.mark.parametrize(
    "given",
    [{}, {"sft_weight": 0.5, "loss_normalize": "length"}, {"skip_below": 0.3}],
    ids=["plain", "options", "skipping"],
)
def test_the_values_are_those_of_the_cpu(
    given: dict[str, Any], reference: Path, two_strategies: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """So the pretended device computes what it says, also where a step goes other ways than the plain one."""

    def run() -> list[dict[str, float]]:
        trainer = make_trainer(CPO(), reference, two_strategies, tmp_path, "float32", **given)
        trainer.train()
        return logged(trainer)[1:]  # in the first line the policy is the reference, and tau that of rounding

    here = run()
    request.getfixturevalue("elsewhere")
    there = run()
    assert len(here) == len(there)
    for expected, line in zip(here, there, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_an_adapter_and_gradient_checkpointing_stay_there_too(
    reference: Path, two_strategies: Path, tmp_path: Path, elsewhere: None
) -> None:
    trainer = make_trainer(CPO(), reference, two_strategies, tmp_path, lora=True)
    trainer.train()
    assert {type(weight.data) for weight in trainer.model.parameters()} == {Elsewhere}
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert 0 < len(trained) < len(list(trainer.model.parameters()))
    assert all(math.isfinite(value) for line in logged(trainer) for value in line.values())


class LeavesAnIndexBehind(CPO):
    """Right on a CPU; on a GPU, where `torch.arange` is not, it would fail."""

    name = "leaves-an-index-behind"

    def terms(self, policy_logps: torch.Tensor, groups: PackedGroups, options: Any) -> Mapping[str, Term]:
        places = torch.arange(policy_logps.shape[1])
        (contrast,) = super().terms(policy_logps, groups, options).values()
        return {"contrast": dataclasses.replace(contrast, total=contrast.total + (0 * places * policy_logps).sum())}


def test_an_objective_that_leaves_a_tensor_on_the_cpu_is_found(
    reference: Path, two_strategies: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_trainer(LeavesAnIndexBehind(), reference, two_strategies, tmp_path).train()
    request.getfixturevalue("elsewhere")
    with pytest.raises(OtherDevice, match=r"mul.*a tensor \[\d\] on cpu met one on meta"):
        make_trainer(LeavesAnIndexBehind(), reference, two_strategies, tmp_path).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_passes_and_gradients_of_both_layouts(architecture: str, dtype: torch.dtype) -> None:
    """Mistral's window makes it take the padded layout."""

    def run(device: torch.device | str) -> tuple[str, torch.Tensor, list[torch.Tensor]]:
        model = tiny_model(architecture, scale=1.0).to(dtype).to(device)
        prepared = prepare_model(model)
        ((_, batch),) = lay_out(GROUPS, prepared.layout, 1000)
        logps = candidate_logps(prepared, batch.to(device))
        assert (logps.device, logps.dtype) == (torch.device(device), torch.float32)
        logps.sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert {(gradient.device, gradient.dtype) for gradient in gradients} == {(torch.device(device), dtype)}
        return prepared.layout, logps.detach().cpu(), [gradient.cpu() for gradient in gradients]

    layout, logps, gradients = run("cpu")
    with pretended_device():
        found_layout, found, found_gradients = run(DEVICE)
    assert layout == found_layout == ("padded" if architecture == "mistral" else "packed")
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(found, logps, **close)
    for gradient, expected in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, **close)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_the_scorer_scores_ranks_and_draws_elsewhere(architecture: str) -> None:
    uniforms = [np.full((5, 2), 0.3), np.full((2, 2), 0.7)]

    def run(device: torch.device | str) -> tuple[Any, Any, list[list[list[int]]]]:
        scorer = Scorer(prepare_model(tiny_model(architecture).to(device)), row_tokens=8)
        scores, ranks = scorer.score_and_rank(GROUPS, [True, False])
        return scores, ranks, [drawn.tolist() for drawn in scorer.draw(GROUPS, uniforms, never=[0])]

    scores, *rest = run("cpu")
    with pretended_device():
        found, *found_rest = run(DEVICE)
    assert found_rest == rest
    for group, expected in zip(found, scores, strict=True):
        assert group == pytest.approx(expected, abs=1e-4)


MIXTURES: dict[str, Callable[[torch.Tensor], Any]] = {
    "add": lambda x: x + torch.arange(3),
    "reversed": lambda x: torch.arange(3) + x,
    "in place": lambda x: x.add_(torch.ones(3)),
    "out": lambda x: torch.mul(torch.ones(3), torch.ones(3), out=x),
    "stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "indices of another device": lambda x: torch.zeros(4)[x.long()],
    "values": lambda x: x.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    "gather": lambda x: x.gather(0, torch.tensor([0])),
}
ALLOWED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number": lambda x: x + torch.tensor(2.0),
    "indices from the CPU": lambda x: x[torch.tensor([0, 2])],
    "a number that fills": lambda x: x.masked_fill(x > 1, torch.tensor(0.0)),
    "moved": lambda x: x + torch.arange(3).to(x.device),
    "made there": lambda x: x + torch.arange(3, device=x.device) + x.new_tensor([1.0]) + torch.zeros_like(x),
    "made of data": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
}


@pytest.mark.parametrize("mix", MIXTURES.values(), ids=MIXTURES)
def test_tensors_of_two_devices_do_not_mix(mix: Callable[[torch.Tensor], Any]) -> None:
    with pretended_device(), pytest.raises(OtherDevice):
        mix(torch.ones(3).to(DEVICE))


@pytest.mark.parametrize("make", ALLOWED.values(), ids=ALLOWED)
def test_what_cuda_allows_gives_what_a_cpu_gives(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    expected = make(torch.ones(3))
    with pretended_device():
        found = make(torch.ones(3).to(DEVICE))
        assert isinstance(found, Elsewhere)
        assert found.tolist() == expected.tolist()
