"""README.md of a trained model and of an ensemble, as the hub reads it, and the push to a stub of the hub."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import transformers.trainer
from huggingface_hub import ModelCard
from transformers.training_args import OptimizerNames

from data.manifest import MANIFEST
from data.storage import sha256
from tests.support.ensembles import ensembles
from tests.support.hub import ClosedHubStub, HubStub
from tests.support.training import cli, metrics
from trainer.model_card import ModelFacts, is_ours, licence_of, training_card, write_card
from trainer.run import main

LORA = "--use_peft", "true", "--lora_target_modules", "q_proj"
SECRET = "hf_" + "x" * 30


def facts(**changed: Any) -> ModelFacts:
    training = {"learning_rate": 1e-5, "seed": 3, "optim": OptimizerNames.ADAMW_TORCH}
    job = {
        "objective": "cpo", "model": {"weights_sha256": "ab" * 32}, "batch_size": 64, "training": training,
        "use": "an=3", "split": "train", "in_support": False,
    }  # fmt: skip
    given = {
        "name": "me/mine", "base": "org/base", "licence": "", "job": job, "objective": "softmax over K",
        "options": {"beta": 5.0, "nothing": None}, "data": ["negative set `s`"], "datasets": [], "adapter": False,
    }  # fmt: skip
    return ModelFacts(**{**given, **changed})


def test_the_card_says_what_the_model_is_and_the_hub_can_read_it() -> None:
    logs = [
        {"step": 10, "loss": 2.5, "h/top1": 0.25, "learning_rate": 1e-5, "tokens_per_second": 9.0},
        {"step": 10, "eval_loss": 2.0, "eval_h/top1": 0.5, "eval_runtime": 1.0},
        {"step": 20, "loss": 1.25, "h/top1": 0.75, "grad_norm": 1.0, "epoch": 1.0},
        {"step": 20, "train_loss": 1.9, "train_runtime": 3.0},
    ]
    text = training_card(facts(licence="apache-2.0", datasets=["me/set"]), logs, 20, 30)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "org/base",
        "base_model_relation": "finetune", "datasets": ["me/set"], "license": "apache-2.0",
        "tags": ["contrastive-preference-optimization", "cpo"],
    }  # fmt: skip
    for line in (
        "# base trained with cpo",
        f"| base model | `org/base`, weights SHA-256 `{'ab' * 8}` |",
        "| objective | `cpo`: softmax over K |",
        "| data | negative set `s` |",
        "| options | beta 5.0, use an=3, split train |",
        "| training | step 20 of 30, 64 a step, learning_rate 1e-05, optim adamw_torch, seed 3 |",
        "| licence | `apache-2.0`, as the base's card says |",
        "| | training, step 20 | held-out, step 10 |",
        "| loss | 1.25 | 2 |",
        "| h/top1 | 0.75 | 0.5 |",
        'model = AutoModelForCausalLM.from_pretrained("me/mine")',
    ):
        assert line in text.splitlines()
    assert not re.search("second|runtime|grad_norm|epoch|train_loss", text)


def test_a_local_base_names_nothing_on_the_hub_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").mkdir()
    text = training_card(facts(base=str(tmp_path / "base"), adapter=True), [], 0, 1)
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["tags"][-1] == "lora"
    assert not {"base_model", "datasets", "license"} & data.keys()
    assert "`~/base`" in text
    assert str(tmp_path) not in text
    assert "| licence | not known here: that of the base and of the data |" in text
    assert 'model = AutoPeftModelForCausalLM.from_pretrained("me/mine")' in text


def test_a_model_from_scratch_has_no_base() -> None:
    text = training_card(facts(licence="mit", job={**facts().job, "model": {"config_sha256": "cd" * 32}}), [], 1, 1)
    assert not {"base_model", "license"} & ModelCard(text).data.to_dict().keys()
    assert "| from scratch | by the configuration of `org/base` |" in text


def test_the_licence_is_what_the_bases_own_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert licence_of(str(tmp_path), tmp_path) == ""
    for text, licence in (
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\nlicense: [a, b]\n---\n", ""),
        ("no front", ""),
        ("---\n: {\n---\n", ""),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(str(tmp_path), tmp_path) == licence
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda model, file: str(tmp_path / file))
    assert licence_of("org/base", tmp_path / "snapshot") == "mit"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda model, file: 1 / 0)
    assert licence_of("org/base", tmp_path) == ""


def test_a_card_that_was_edited_is_never_written_over(tmp_path: Path) -> None:
    first, second = training_card(facts(), [], 1, 2), training_card(facts(), [], 2, 2)
    write_card(tmp_path, first)
    write_card(tmp_path, second)
    assert (tmp_path / "README.md").read_text() == second
    for edited in (second.replace("step 2", "step two"), f"{second}\nMine.\n", "# Mine\n"):
        (tmp_path / "README.md").write_text(edited)
        write_card(tmp_path, first)
        assert (tmp_path / "README.md").read_text() == edited
        assert not is_ours(edited.encode())


def test_an_ensembles_card_names_both_models_and_their_shares(mle: Path, cpo: Path, tmp_path: Path) -> None:
    (found,) = ensembles(mle, cpo, tmp_path / "out", 0.3)
    text = (found / "README.md").read_text()
    assert is_ours(text.encode())
    assert "# Weight-space ensemble, alpha 0.3\n" in text
    assert f"| 0.3 of | `{mle}`, weights SHA-256 `" in text
    assert f"| 0.7 of | `{cpo}`, weights SHA-256 `" in text
    assert 'from_pretrained("alpha-0.3")' in text
    assert ModelCard(text).data.to_dict()["tags"] == ["contrastive-preference-optimization", "merge"]


# --- the command


def push_to(monkeypatch: pytest.MonkeyPatch, hub: HubStub) -> None:
    """Let both clients of the hub, ours and that of transformers' trainer, be a stub."""
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)

    def create_repo(repo_id: str, **options: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: SimpleNamespace(create_repo=create_repo))


@pytest.mark.seconds
@pytest.mark.parametrize("objective", ["cpo", "dpo"])
def test_a_trained_adapter_has_our_card_and_is_pushed_with_it(
    objective: str, reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """PEFT's card is empty, and TRL and transformers write theirs: ours stands in their place."""
    hub, out = HubStub(), tmp_path / "out"
    push_to(monkeypatch, hub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    words = cli(
        reference, negative_set, out, "--objective", objective, "--use", "an=1", "--max_steps", "2",
        "--save_steps", "1", "--push_to_hub", "true", "--hub_model_id", "ours/adapter", *LORA,
    )  # fmt: skip
    main(words)
    text = (out / "README.md").read_text()
    assert is_ours(text.encode())
    hash_of_set = sha256((negative_set / MANIFEST).read_bytes())[:16]
    assert f"manifest SHA-256 `{hash_of_set}`, 48 groups of " in text
    assert "| training | step 2 of 2, 8 a step, " in text
    assert f"| objective | `{objective}`: " in text
    assert "| loss | " in text
    assert 'AutoPeftModelForCausalLM.from_pretrained("ours/adapter")' in text
    assert f"| loss | {metrics(out)[-2]['loss']:.4g} |" in text
    checkpoint = (out / "checkpoint-1" / "README.md").read_text()
    assert "| training | step 1 of 2, " in checkpoint
    assert [call[:2] for call in hub.calls] == [("create_repo", "ours/adapter"), ("upload_folder", "ours/adapter")]
    assert {"README.md", "adapter_model.safetensors", "metrics.jsonl", "trainer_state.json"} <= hub.files.keys()
    assert not [path for path in hub.files if path.startswith((".", "checkpoint-"))]
    assert hub.files["README.md"].decode() == text
    assert not [path for path, content in hub.files.items() if SECRET.encode() in content]
    assert SECRET not in caplog.text + capsys.readouterr().err

    (out / "README.md").write_text(edited := f"{text}\nMine.\n")
    main([*words, "--resume_from_checkpoint", "true"])  # finished: pushed again, trained no further
    assert len(hub.calls) == 4
    assert hub.files["README.md"].decode() == (out / "README.md").read_text() == edited


@pytest.mark.seconds
def test_a_card_that_a_person_wrote_survives_a_resumed_run(reference: Path, negative_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = cli(reference, negative_set, out, "--max_steps", "2", "--save_steps", "1", *LORA)
    main(words)
    (out / "README.md").write_text("# Mine\n")
    for name in ("checkpoint-2", "trainer_state.json"):
        path = out / name
        path.rename(tmp_path / name)
    main([*words, "--resume_from_checkpoint", "true"])
    assert (out / "README.md").read_text() == "# Mine\n"
    assert is_ours((out / "checkpoint-2" / "README.md").read_bytes())


def test_who_may_not_push_is_told_before_anything_is_trained(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    push_to(monkeypatch, HubStub())
    words = cli(reference, negative_set, tmp_path / "out", "--max_steps", "1", "--push_to_hub", "true")
    assert main([*words, "--hub_model_id", "theirs/model"]) == 2
    assert (
        "error: nothing can be pushed to 'theirs/model': 'me' does not belong to 'theirs'." in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.seconds
def test_a_hub_that_fails_at_the_end_costs_no_model(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    push_to(monkeypatch, ClosedHubStub())
    out = tmp_path / "model"
    words = cli(reference, negative_set, out, "--max_steps", "1", "--push_to_hub", "true")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"error: '{out}' is finished, but cannot be pushed to 'model': Token is required." in said
    assert (out / "model.safetensors").exists()
    assert (out / "trainer_state.json").exists()
