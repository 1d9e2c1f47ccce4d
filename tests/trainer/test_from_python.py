"""`from trainer import ContrastiveTrainer`: a model and a negative set are all that it must be given."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.trainer
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import trainer as room
from data import NegativeSet
from data.command.errors import UserError
from data.manifest import MANIFEST
from data.storage import sha256
from tests.support.hub import HubStub
from tests.support.tiny import save_tiny_model
from tests.support.training import cli, metrics
from trainer import ContrastiveTrainer
from trainer.groups.dataset import ContrastiveGroups
from trainer.model_card import is_ours
from trainer.run import main

pytestmark = pytest.mark.seconds


def arguments(output: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1,
        **{"save_strategy": "no", "max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3, **options},
    )  # fmt: skip


def losses(trainer: ContrastiveTrainer) -> list[float]:
    return [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]


def test_a_named_model_and_a_set_are_enough(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    negatives = NegativeSet(str(negative_set))
    trainer = ContrastiveTrainer(
        model=str(reference),
        args=arguments(tmp_path, max_steps=12, per_device_train_batch_size=48, lr_scheduler_type="constant"),
        train_dataset=negatives,
        objective="cpo",
        beta=5,
    )
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(math.log(4), abs=1e-3)
    assert found[-1] < 0.25 * found[0]
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path)("Say")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32
    card = (tmp_path / "README.md").read_text()
    assert is_ours(card.encode())
    weights = negatives.manifest.job["model"]["weights_sha256"][:16]
    manifest = sha256((negative_set / MANIFEST).read_bytes())[:16]
    for line in (
        f"# {reference.name} trained with cpo",
        f"| base model | `{reference}`, weights SHA-256 `{weights}` |",
        f"| data | negative set `{negative_set}`, manifest SHA-256 `{manifest}`, 48 groups of 3 an, of the reference "
        f"with weights SHA-256 `{weights}` |",
        "| options | beta 5.0, sft_weight 0.0, use an=3, rank_by embedding, split train |",
        f"| loss | {found[-1]:.4g} |",
        f'model = AutoModelForCausalLM.from_pretrained("{tmp_path.name}")',
    ):
        assert line in card.splitlines()
    assert "| training | step 12 of 12, 48 a step, learning_rate 0.001, " in card


def test_the_command_and_the_library_train_alike(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    more = ["--max_steps", "3", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--beta", "2"]
    more += ["--weight_decay", "0", "--use", "an=2", "--row_tokens", "256"]
    assert main(cli(reference, negative_set, tmp_path / "command", *more)) == 0
    groups = ContrastiveGroups.of([NegativeSet(str(negative_set))], "train", "an=2")
    trainer = ContrastiveTrainer(
        str(reference), arguments(tmp_path / "library", max_steps=3), train_dataset=groups, objective="cpo-rank",
        beta=2, row_tokens=256,
    )  # fmt: skip
    trainer.train()
    assert losses(trainer) == [line["loss"] for line in metrics(tmp_path / "command") if "loss" in line]


@pytest.mark.parametrize("wrapped", [False, True], ids=["peft_config", "wrapped before"])
def test_an_adapter_of_a_loaded_model_is_trained_from_the_reference_on(
    wrapped: bool, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = ContrastiveTrainer(
        get_peft_model(model, adapter) if wrapped else model,
        arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1),
        train_dataset=ContrastiveGroups.of([NegativeSet(str(negative_set))], "train", "an=3:hard"),
        peft_config=None if wrapped else adapter,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-3)
    weights: Any = trainer.model
    after = dict(weights.named_parameters())
    assert any("lora_B" in name and bool(weight.any()) for name, weight in after.items())
    assert all(
        torch.equal(before[name.removeprefix("base_model.model.").replace(".base_layer", "")], weight)
        for name, weight in after.items()
        if "lora_" not in name
    )
    card = (tmp_path / "checkpoint-1" / "README.md").read_text()
    assert is_ours(card.encode())
    assert f"| base model | `{reference}`, given loaded: its weights have no hash here |" in card
    assert ", use an=3:hard, rank_by embedding, split train |" in card
    assert "| training | step 1 of 2, " in card
    assert f'AutoPeftModelForCausalLM.from_pretrained("{tmp_path.name}")' in card
    assert ModelCard(card).data.to_dict()["library_name"] == "peft"


def test_a_push_takes_our_card_along_and_says_what_it_does_not_take(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    hub = HubStub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    monkeypatch.setattr(hub, "create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    trainer = ContrastiveTrainer(
        str(reference), arguments(tmp_path, hub_model_id="me/mine"), train_dataset=NegativeSet(str(negative_set))
    )
    trainer.push_to_hub(license="mit")
    assert is_ours(hub.files["README.md"])
    assert b'from_pretrained("me/mine")' in hub.files["README.md"]
    assert "README.md does not take license. Edit it: it is then left as it is." in caplog.text


def test_ground_truths_of_a_set_are_trained_on_and_its_other_half_is_watched(reference: Path, tmp_path: Path) -> None:
    from tests.support.tiny import make_negative_set

    make_negative_set(tmp_path / "set", reference, num_groups=16, num_negatives=1, split="all")
    negatives = NegativeSet(str(tmp_path / "set"))
    trainer = ContrastiveTrainer(
        str(reference), arguments(tmp_path / "out"), train_dataset=negatives, eval_dataset=negatives, objective="mle"
    )
    halves = [set(groups.store.ids(0).to_pylist()) for groups in (trainer.train_dataset, trainer.eval_dataset)]  # type: ignore[union-attr]
    assert (len(halves[0] | halves[1]), halves[0] & halves[1]) == (16, set())
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "cpoo"}, "unknown objective 'cpoo'. Did you mean 'cpo'?"),
        ({"betta": 5}, "unknown key 'betta' of ContrastOptions. Did you mean 'beta'?"),
        ({"beta": "five"}, "'beta' of ContrastOptions must be a number"),
        ({"beta": 0}, "--beta must be above 0, got 0"),
        ({"objective": "dpo"}, "objective 'dpo' trains on pairs, and ContrastiveTrainer on groups. Use `python -m"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_cannot_do_is_one_line_before_any_work(
    options: dict[str, Any], message: str, negative_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        ContrastiveTrainer(
            "no/such/model", arguments(tmp_path), train_dataset=NegativeSet(str(negative_set)), **options
        )
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_named_model_that_is_not_the_reference_is_refused(negative_set: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match=r"was made with reference model .* but --model '.*other' has weights"):
        ContrastiveTrainer(str(other), arguments(tmp_path), train_dataset=NegativeSet(str(negative_set)))


def test_each_trainer_holds_a_set_to_its_own_model(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    negatives = NegativeSet(str(negative_set))
    ContrastiveTrainer(str(reference), arguments(tmp_path), train_dataset=negatives)
    with pytest.raises(UserError, match="was made with reference model"):
        ContrastiveTrainer(
            str(save_tiny_model(tmp_path / "other", seed=9)), arguments(tmp_path), train_dataset=negatives
        )
    smaller = AutoModelForCausalLM.from_pretrained(reference)
    smaller.config.vocab_size = 5
    trainer = ContrastiveTrainer(smaller, arguments(tmp_path), train_dataset=NegativeSet(str(negative_set)))
    with pytest.raises(UserError, match="cannot be used"):
        _ = trainer.train_dataset[0]  # type: ignore[index]


def test_arguments_that_it_would_ignore_are_refused(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--label_smoothing_factor is not supported: no objective smooths labels"):
        ContrastiveTrainer(
            str(reference),
            arguments(tmp_path, label_smoothing_factor=0.1),
            train_dataset=NegativeSet(str(negative_set)),
        )


def test_the_losses_are_exported() -> None:
    policy, reference = torch.zeros(1, 3), torch.zeros(1, 3)
    assert float(room.cpo_loss(policy, reference, beta=5)) == pytest.approx(math.log(3))
    ranks = torch.tensor([[0, 1, 2]])
    assert float(room.cpo_ranking_loss(policy, reference, ranks, beta=5)) == pytest.approx(math.log(6))
    with pytest.raises(AttributeError, match="module 'trainer' has no attribute 'Trainer'"):
        _ = room.Trainer
