"""`python -m trainer.run`: one clear line for wrong input, another job or a finished one, with nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

import trainer.run
from data.command.errors import UserError
from data.schema import SCHEMA_VERSION
from tests.support.command_lines import refused, train
from tests.support.commands import ROOT


def test_trainer_refuses_a_model_that_is_not_the_reference_naming_both(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.models import weights_hash
    from tests.support.tiny import save_tiny_model

    other = save_tiny_model(tmp_path / "other", seed=1)
    line = refused(trainer.run.main, train(other, negative_set, tmp_path / "out"), capsys)
    assert weights_hash(str(reference))[:16] in line
    assert weights_hash(str(other))[:16] in line
    assert not (tmp_path / "out").exists()


def test_trainer_refuses_another_schema_version_naming_both(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(negative_set, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    line = refused(trainer.run.main, train(reference, copy, tmp_path / "out"), capsys)
    assert "schema version 99" in line
    assert f"version {SCHEMA_VERSION}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--learning_rte", "1"], ("unknown key 'learning_rte'", "learning_rate")),
        (["--objective", "cpo-ranked"], ("unknown objective 'cpo-ranked'", "cpo-rank")),
        (["--use", "an=12"], ("an=12", "an=3")),
        (["--use", "bn=1"], ("bn=1", "an=3")),
        (["--rank_by", "rouge"], ("'rouge'", "holds embedding")),
        (["--max_steps", "many"], ("--max_steps", "many")),
        (["--beta", "0"], ("--beta", "above 0")),
        (["--split", "test"], ("no groups of split 'test'",)),
        (["--config", "/no/such.yaml"], ("/no/such.yaml", "cannot read")),
        (["--dataset", "facts"], ("--shards or --dataset",)),
        (["--sft_weight", "-1"], ("--sft_weight must be 0 or more",)),
        (
            ["--sft_weight", "1", "--objective", "mle"],
            (
                "--sft_weight does not apply to objective 'mle'; it goes with --objective cpo and cpo-rank",
                "Leave it out.",
            ),
        ),
        (
            ["--loss_normalize", "length", "--objective", "dpo", "--use", "an=1"],
            ("--loss_normalize does not apply to objective 'dpo'; it goes with --objective cpo and cpo-rank and nca.",),
        ),
        (["--objective", "pss", "--pss_share", "1.5"], ("--pss_share must be from 0 to 1, got 1.5",)),
        (["--objective", "pss", "--pss_passes", "0"], ("--pss_passes must be at least 1, got 0",)),
        (["--objective", "pss", "--pss_mixtures", "0"], ("--pss_mixtures must be at least 1, got 0",)),
        (
            ["--pss_mixtures", "2"],
            ("--pss_mixtures does not apply to objective 'cpo'; it goes with --objective pss", "Leave it out."),
        ),
        (["--min_similarity", "0.8", "--max_similarity", "0.2"], ("--min_similarity 0.8 is above --max_similarity",)),
        (["--min_similarity", "2"], ("leaves 48 of 48 groups without any", "Choose wider bounds")),
        (["--objective", "mle", "--use", "an=1"], ("--use does not apply to objective 'mle', which trains on ground",)),
        (["--objective", "pss", "--rank_by", "rouge"], ("--rank_by does not apply to objective 'pss'",)),
        (["--objective", "mle", "--min_similarity", "0"], ("--min_similarity does not apply to objective 'mle'",)),
        (["--objective", "mle", "--max_similarity", "1"], ("--max_similarity does not apply to objective 'mle'",)),
        (["--task", "dolly"], ("--task does not apply to --shards",)),
        (["--eval_shards", "runs/o"], ("--eval_shards does nothing without --eval_strategy",)),
        (["--eval_split", "train"], ("--eval_split does nothing without --eval_strategy",)),
        (["--max_eval_samples", "5"], ("--max_eval_samples does nothing without --eval_strategy",)),
        (["--early_stopping_patience", "2"], ("--early_stopping_patience does nothing without --eval_strategy",)),
        (["--early_stopping_patience", "0"], ("--early_stopping_patience must be at least 1, got 0",)),
        (["--eval_on_start", "true"], ("--eval_on_start does nothing without --eval_strategy",)),
        (["--label_smoothing_factor", "0.1"], ("--label_smoothing_factor is not supported",)),
        (["--auto_find_batch_size", "true"], ("--auto_find_batch_size is not supported",)),
        (["--train_sampling_strategy", "group_by_length"], ("goes with --objective dpo", "only; steps of groups")),
    ],
)
def test_trainer_refuses_wrong_options_in_one_line(
    more: list[str],
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *more), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


def test_one_yaml_serves_objectives_with_and_without_a_temperature(tmp_path: Path) -> None:
    from trainer.arguments import parse

    recipe = ROOT / "recipes" / "quickstart-train.yaml"
    for objective in ("mle", "pss", "cpo", "cpo-rank"):
        script, _, _ = parse(["--config", str(recipe), "--objective", objective, "--output_dir", str(tmp_path)])
        assert (script.objective, script.objective_options["cpo"].beta) == (objective, 1)


def test_eval_shards_go_with_shards(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--objective", "mle", "--model", str(reference), "--dataset", "facts", "--output_dir", str(tmp_path / "o")]
    line = refused(trainer.run.main, [*words, "--eval_strategy", "steps", "--eval_shards", "s"], capsys)
    assert "--eval_shards does not apply to --dataset. Leave it out." in line
    line = refused(trainer.run.main, [*words, "--in_support", "true"], capsys)
    assert "--in_support does not apply to --dataset. Leave it out." in line


@pytest.mark.seconds
def test_trainer_refuses_an_output_directory_with_another_job_naming_the_difference(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--max_steps", "1", "--save_strategy", "no", "--per_device_train_batch_size", "4"]
    assert trainer.run.main(train(reference, negative_set, out, *options)) == 0
    line = refused(trainer.run.main, train(reference, negative_set, out, *options, "--objective", "cpo-rank"), capsys)
    assert "objective is 'cpo'" in line
    assert "'cpo-rank'" in line
    assert "--resume_from_checkpoint" in refused(
        trainer.run.main, train(reference, negative_set, out, *options), capsys
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--resume_from_checkpoint", "/no/such/checkpoint"], ("/no/such/checkpoint", "does not exist")),
        (["--resume_from_checkpoint", "trainer"], ("'trainer'", "no checkpoint")),
        (["--model_revision", "v2"], ("--model_revision 'v2'", "not supported")),
        (["--attn_implementation", "no_such_attention"], ("cannot set up", "no_such_attention")),
        (["--use_peft", "true", "--lora_target_modules", "nosuch"], ("cannot set up", "nosuch")),
    ],
)
def test_trainer_refuses_what_cannot_be_set_up_before_writing(
    more: list[str],
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *more), capsys)
    assert all(piece in line for piece in said), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("use: {an: 1}", ("'use' in ", "must be a list of texts", "{'an': 1}")),
        ("objective: [cpo]", ("'objective' in ", "must be text", "['cpo']")),
        ("objective: 5", ("'objective' in ", "must be text, got 5")),
        ("use: 11", ("'use' in ", "must be a list of texts, got 11")),
        ("sft_weight: much", ("'sft_weight' in ", "must be a number", "'much'")),
        ("dtype: float8", ("unknown dtype 'float8'",)),
        ("no_dataloader_pin_memory: true", ("unknown key 'no_dataloader_pin_memory'",)),
    ],
)
def test_trainer_refuses_yaml_values_of_the_wrong_kind_in_one_line(
    yaml: str,
    said: tuple[str, ...],
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "train.yaml").write_text(yaml + "\n")
    config = ["--config", str(tmp_path / "train.yaml")]
    line = refused(trainer.run.main, train(reference, negative_set, tmp_path / "out", *config), capsys)
    assert all(piece in line for piece in said), line


@pytest.mark.seconds
def test_trainer_does_not_retrain_a_finished_run(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spelled out `--resume_from_checkpoint false` changes nothing; dashes in flags are as good as underscores."""
    options = ["--max_steps", "1", "--save_strategy", "no", "--per-device-train-batch-size", "4"]
    options += ["--no_dataloader_pin_memory", "--resume_from_checkpoint"]
    arguments = train(reference, negative_set, tmp_path / "out", *options)
    arguments[arguments.index("--output_dir")] = "--output-dir"
    assert trainer.run.main([*arguments, "true"]) == 0
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert "already holds this job" in refused(trainer.run.main, [*arguments, "false"], capsys)
    assert "finished" in refused(trainer.run.main, [*arguments, "true"], capsys)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "trainer_job.json").write_text("{")
    assert "damaged" in refused(trainer.run.main, [*arguments, "true"], capsys)


def test_trainer_refuses_deepspeed_and_names_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments, _refuse_unsupported

    training = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    _refuse_unsupported(training, ModelConfig(), to_run=True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="DeepSpeed is not supported"):
        _refuse_unsupported(training, ModelConfig(), to_run=True)


def test_trainer_refuses_several_gpus_in_one_process(tmp_path: Path) -> None:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments, _refuse_unsupported

    training = PaperTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    training._n_gpu = 2
    with pytest.raises(UserError, match="accelerate launch -m"):
        _refuse_unsupported(training, ModelConfig(), to_run=True)
