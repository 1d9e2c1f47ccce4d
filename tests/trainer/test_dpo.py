"""The DPO baseline: TRL's trainer sees the ids and the reference log-probabilities of the set, and nothing else."""

import logging
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import DPOTrainer

from data.command.errors import UserError
from data.shards import NegativeSet
from tests.support.training import Infinite, first_gradient
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import Collator, ContrastiveGroups
from trainer.monitor.diagnosis import Diagnosis
from trainer.objectives import OBJECTIVES
from trainer.objectives.losses import cpo_loss
from trainer.objectives.pairs import PairTrainer, dpo_config, make_dpo_trainer, preference_pairs
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import lay_out
from trainer.scoring.prepared_model import candidate_logps, prepare_model

pytestmark = pytest.mark.seconds

BETA = 5.0


def make_trainer(
    reference: Path, negative_set: Path, output: Path, use: int = 3, held_out: int = 0, **options: Any
) -> PairTrainer:
    options = {"logging_steps": 1, "per_device_train_batch_size": 8, "report_to": "none", **options}
    training = PaperTrainingArguments(output_dir=str(output), use_cpu=True, save_strategy="no", **options)
    pairs = preference_pairs(ContrastiveGroups.of([NegativeSet(str(negative_set))], "train", f"an={use}"), "dpo")
    return make_dpo_trainer(
        pairs,
        AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32),
        None,
        AutoTokenizer.from_pretrained(reference),
        training,
        BETA,
        pairs.select(range(held_out)) if held_out else None,
    )


def test_a_pair_is_the_ground_truth_and_one_negative_with_the_ids_of_the_set(negative_set: Path) -> None:
    negatives = NegativeSet(str(negative_set))
    pairs = preference_pairs(ContrastiveGroups.of([negatives], "train", "an=2"), "dpo")
    assert len(pairs) == 96
    expected = [
        {
            "id": group.id,
            "prompt_ids": group.prompt_ids,
            "chosen_ids": group.response_ids,
            "rejected_ids": negative.ids,
            "ref_chosen_logps": group.reference_logp,
            "ref_rejected_logps": negative.reference_logp,
            "length": len(group.prompt_ids) + max(len(group.response_ids), len(negative.ids)),
        }
        for group in negatives.groups()
        for negative in group.negatives[:2]
    ]
    assert pairs.to_list() == expected


def test_the_batch_holds_each_sequence_whole_whatever_its_length(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """TRL cuts at 1,024 tokens by default; here nothing is cut, and no EOS is added."""
    trainer = make_trainer(reference, negative_set, tmp_path)
    pair = {"id": "a", "prompt_ids": [5] * 1500, "chosen_ids": [6, 7], "rejected_ids": [8]}
    pair |= {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    batch = trainer.data_collator([pair])
    assert batch["input_ids"][0].tolist() == [5] * 1500 + [6, 7]
    assert batch["input_ids"][1, :-1].tolist() == [5] * 1500 + [8]
    assert batch["completion_mask"].sum(1).tolist() == [2, 1]
    assert batch["attention_mask"].sum(1).tolist() == [1502, 1501]
    assert batch["ref_rejected_logps"].tolist() == [-2.0]


def test_trl_gets_the_users_training_arguments(tmp_path: Path) -> None:
    training = PaperTrainingArguments(
        output_dir=str(tmp_path), seed=3, data_seed=4, lr_scheduler_type="cosine", warmup_steps=2, max_grad_norm=0.5,
        gradient_accumulation_steps=4, save_steps=7, logging_steps=3, report_to=["none"], adam_beta2=0.9,
        lr_scheduler_kwargs={"num_cycles": 1.0}, use_cpu=True,
    )  # fmt: skip
    config = dpo_config(training, 2.5)
    ours, theirs = training.to_dict(), config.to_dict()
    assert {f.name: theirs[f.name] for f in fields(TrainingArguments)} == {
        f.name: ours[f.name] for f in fields(TrainingArguments)
    }
    assert config.beta == 2.5
    assert config.max_length is None
    assert (config.gradient_checkpointing, config.bf16) == (False, False)  # where TRL's defaults are True
    assert config.per_device_train_batch_size == 16  # the paper's 64, here pairs, over 4 accumulation steps


def test_the_first_loss_is_log_2_with_the_reference_log_probabilities_of_the_set(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reference forward: TRL's own is never called, and no second model is kept."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a reference forward")

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", refuse)
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", refuse)
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1, learning_rate=0.0)
    assert trainer.ref_model is None
    trainer.train()
    first = trainer.state.log_history[0]
    assert float(first["loss"]) == pytest.approx(math.log(2), abs=2e-4)
    assert abs(float(first["rewards/margins"])) < 1e-3


def test_the_start_is_reported_with_its_bound(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1)
    with caplog.at_level(logging.INFO, logger="trainer.monitor.start"):
        trainer.train()
    (record,) = (r for r in caplog.records if r.name == "trainer.monitor.start")
    line = record.getMessage()
    assert line.startswith("before the first step, on 8 pairs: ")
    assert line.endswith("loss 0.6931 (log 2 is 0.6931)")
    worst, bound = (float(line.split(before)[1].split()[0].rstrip(":")) for before in ("max |h| ", "(bound "))
    assert worst < 1e-3
    assert bound == pytest.approx(BETA * 3e-5 * int(line.split("up to ")[1].split()[0]), rel=0.05)
    assert list(trainer._metrics["eval"]) == []  # the check is no evaluation


def test_a_policy_that_is_not_the_reference_is_named_before_the_first_step(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The h of the policy are those of TRL's own first log."""
    trainer = make_trainer(reference, negative_set, tmp_path, max_steps=1, per_device_train_batch_size=1)
    trainer.model.load_state_dict(moved_policy(reference).state_dict())  # type: ignore[union-attr]  # None in TRL's types
    trainer.train()
    (line,) = (r.getMessage() for r in caplog.records if "differs from the reference before the first" in r.msg)
    first = trainer.state.log_history[0]
    largest = max(abs(float(first[name])) for name in ("rewards/chosen", "rewards/rejected"))
    assert f"max |h| {largest:.2g} " in line
    assert f"loss {float(first['loss']):.4f} (log 2 is 0.6931)" in line
    assert "computed in torch.float32, layout 'padded', attention" in line


def moved_policy(reference: Path) -> Any:
    """A policy that is not the reference, so that the loss is not log 2."""
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def test_trls_loss_and_gradient_are_cpos_with_k_2(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(reference, negative_set, tmp_path, per_device_train_batch_size=24, max_steps=1)
    pairs = trainer.train_dataset.select(range(24))  # type: ignore[union-attr]  # None in TRL's types
    trainer.train_dataset = pairs
    moved = moved_policy(reference)
    trainer.model.load_state_dict(moved.state_dict())  # type: ignore[union-attr]  # None in TRL's types
    found = first_gradient(trainer)  # type: ignore[arg-type]  # a Trainer is all it needs

    prepared = prepare_model(moved)
    rows = pairs.to_list()
    sequences = [Continuations(r["prompt_ids"], [r["chosen_ids"], r["rejected_ids"]]) for r in rows]
    ((_, tokens),) = lay_out(sequences, prepared.layout, 10**6)
    stored = torch.tensor([[r["ref_chosen_logps"], r["ref_rejected_logps"]] for r in rows])
    loss = cpo_loss(candidate_logps(prepared, tokens), stored, beta=BETA, mask=tokens.mask)
    loss.backward()

    assert abs(loss.item() - math.log(2)) > 0.05
    assert float(trainer.state.log_history[-1]["train_loss"]) == pytest.approx(loss.item(), abs=1e-5)
    expected = {name: parameter.grad for name, parameter in moved.named_parameters()}
    assert expected.keys() == found.keys()
    norm = math.sqrt(sum(g.pow(2).sum().item() for g in expected.values()))
    difference = math.sqrt(sum((g - found[n]).pow(2).sum().item() for n, g in expected.items()))
    assert norm > 0
    assert difference / norm < 1e-4


def test_training_on_pairs_lowers_the_dpo_loss(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        reference, negative_set, tmp_path, use=1, per_device_train_batch_size=48, max_steps=12, learning_rate=1e-3,
        lr_scheduler_type="constant", logging_steps=3, logging_first_step=False,
    )  # fmt: skip
    trainer.train()
    first, *_, last = (logs for logs in trainer.state.log_history if "loss" in logs)
    assert float(last["loss"]) < 0.5 * float(first["loss"])
    assert float(last["rewards/accuracies"]) > 0.9
    # Three steps of 48 pairs are the one stretch of 128 or more.
    assert float(first["contrast/loss_over_start"]) == pytest.approx(float(first["loss"]) / math.log(2), rel=1e-3)


def test_an_evaluation_just_before_a_log_costs_the_log_nothing(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """transformers leaves the model as evaluation left it, so that TRL then keeps what it gathered of train pairs."""
    trainer = make_trainer(
        reference, negative_set, tmp_path, use=1, per_device_train_batch_size=16, num_train_epochs=3,
        logging_strategy="epoch", logging_first_step=False, eval_strategy="steps", eval_steps=3, held_out=4,
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [3, 6, 9]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_of_pairs_that_is_not_finite_stops_before_the_optimiser_step_with_the_groups(
    where: str, reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of two pairs each; the fault is in the second one of the second step."""
    trainer = make_trainer(
        reference, negative_set, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3,
        learning_rate=1e-3,
    )  # fmt: skip
    before: dict[str, torch.Tensor] = {}
    batches: list[list[str]] = []
    compute_loss = trainer.compute_loss

    def fault_stub(*arguments: Any, **options: Any) -> torch.Tensor:
        batches.append(arguments[1]["id"])
        value = compute_loss(*arguments, **options)
        if len(batches) == 4:
            before.update({k: v.clone() for k, v in trainer.model.state_dict().items()})  # type: ignore[union-attr]
            value = value * torch.nan if where == "loss" else Infinite.apply(value)
        return value

    monkeypatch.setattr(trainer, "compute_loss", fault_stub)
    with pytest.raises(UserError) as caught:
        trainer.train()
    step, second = (list(dict.fromkeys(ids)) for ids in (batches[2] + batches[3], batches[3]))
    assert len(batches) == 4
    assert str(caught.value).startswith({"loss": "the loss (nan)", "gradient": "a gradient"}[where])
    assert "of step 2 is not finite; stopped before the optimiser step" in str(caught.value)
    assert f"Groups of the step (process 0): {', '.join(step)}. " in str(caught.value)
    blamed = f"The loss of these is not finite: {', '.join(second)}. "
    assert (blamed in str(caught.value)) == (where == "loss")
    for name, value in trainer.model.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(value, before[name]), name


def test_pairs_of_like_length_can_share_a_batch(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    def padded_tokens(strategy: str) -> int:
        trainer = make_trainer(reference, negative_set, tmp_path, train_sampling_strategy=strategy)
        batches = list(trainer.get_train_dataloader())
        assert [len(batch["input_ids"]) for batch in batches] == [16] * 18
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)

    assert padded_tokens("group_by_length") < 0.5 * padded_tokens("random")


def test_a_ground_truth_that_falls_is_named(
    reference: Path, negative_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics that are made to fall reach the watch."""
    trainer = make_trainer(
        reference, negative_set, tmp_path, max_steps=4, per_device_train_batch_size=64, learning_rate=0.0
    )
    compute_loss = trainer.compute_loss

    def falling_stub(*arguments: Any, **options: Any) -> torch.Tensor:
        loss = compute_loss(*arguments, **options)
        metrics, step = trainer._metrics["train"], float(trainer.state.global_step)
        values = {"logps/ground_truth_change": -step, "logps/ground_truth_change_square": step**2}
        for name, value in {**values, "rewards/margin": step}.items():
            metrics[name][-1] = value
        return loss

    trainer.compute_loss = falling_stub  # type: ignore[method-assign]
    trainer.add_callback(Diagnosis(OBJECTIVES.load("dpo").remedies))
    trainer.train()
    (line,) = (record.getMessage() for record in caplog.records if record.name == "trainer.monitor.diagnosis")
    assert line.startswith("By step 4 the train ground truths have become less likely than under the reference (-1.50")


def test_pairs_are_measured_as_groups_of_two_from_trls_own_forward_pass(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """A batch under a policy that is not the reference: ours of a log, against `cpo`'s on the same groups."""
    trainer = make_trainer(
        reference, negative_set, tmp_path, use=1, per_device_train_batch_size=48, max_steps=1, learning_rate=0.0
    )
    moved = moved_policy(reference)
    trainer.model.load_state_dict(moved.state_dict())  # type: ignore[union-attr]  # None in TRL's types
    passes = []
    trainer.model.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    trainer.train()
    found = trainer.state.log_history[0]
    assert len(passes) == 2  # the check before the first step, and the step's

    groups = ContrastiveGroups.of([NegativeSet(str(negative_set))], "train", "an=1")
    prepared = prepare_model(moved)
    (packed,) = Collator(prepared.layout, 10**6, groups.strategies)([groups[i] for i in range(len(groups))])
    cpo = OBJECTIVES.load("cpo")
    values = cpo.metrics(candidate_logps(prepared, packed.tokens), packed, cpo.Options(beta=BETA))
    assert set(values) - set(found) == {"rewards/kendall_tau"}
    for name in set(values) & set(found):
        assert float(found[name]) == pytest.approx(values[name].mean().item(), rel=1e-3, abs=1e-4), name
    assert float(found["contrast/kl_bound"]) == pytest.approx(math.log(2) - float(found["loss"]), abs=1e-3)
    assert float(found["contrast/spread"]) > 0.05
    assert found["contrast/repeats"] == 1.0
