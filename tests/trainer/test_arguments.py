"""The trainer's arguments: the paper's defaults, flags over YAML, what the record holds, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from data.command.errors import UserError
from tests.support.training import cli
from trainer.arguments import parse
from trainer.record import job_record
from trainer.run import main
from trainer.scoring.prepared_model import prepare_model
from trainer.scoring.support import attention_implementation

MLE = ["--objective", "mle", "--model", "m", "--dataset", "facts", "--output_dir", "o", "--use_cpu", "true"]


@pytest.mark.parametrize(
    ("given", "kept"), [(["q_proj"], ["q_proj"]), (["q_proj", "v_proj"],) * 2, (["all-linear"], "all-linear")]
)
def test_lora_target_modules_are_names_also_when_there_is_one(given: list[str], kept: Any) -> None:
    words = ["--shards", "s", "--model", "m", "--output_dir", "o", "--use_peft", "--lora_target_modules", *given]
    assert parse(words)[2].lora_target_modules == kept


def test_training_arguments_default_to_the_papers(tmp_path: Path) -> None:
    script, training, model = parse(["--shards", "s", "--model", "m", "--output_dir", str(tmp_path)])
    assert script.options.beta == 5.0
    assert script.objective == "cpo"
    assert (training.learning_rate, training.weight_decay) == (1e-5, 0.05)
    assert training.optim.startswith("adamw")
    assert training.per_device_train_batch_size == 64
    assert model.model_name_or_path == "m"


def test_the_papers_batch_is_shared_by_accumulation_steps(tmp_path: Path) -> None:
    _, training, _ = parse(
        ["--shards", "s", "--model", "m", "--output_dir", str(tmp_path), "--gradient_accumulation_steps", "8"]
    )
    assert training.per_device_train_batch_size == 8


@pytest.mark.parametrize(("processes", "steps"), [("3", "1"), ("128", "1"), ("4", "32"), ("1", "6")])
def test_a_batch_that_is_not_the_papers_must_be_asked_for(
    processes: str, steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    words = ["--shards", "s", "--model", "m", "--output_dir", str(tmp_path), "--gradient_accumulation_steps", steps]
    with pytest.raises(UserError, match=f"64 cannot be divided by {processes} processes x {steps} acc") as caught:
        parse(words)
    assert "Set --per_device_train_batch_size" in str(caught.value)
    assert parse([*words, "--per_device_train_batch_size", "21"])[1].per_device_train_batch_size == 21


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--objective", "cpo", "--dataset", "d"],
            "'cpo' needs --shards: sets that python -m negatives_gen makes",
        ),
        (["--objective", "mle"], "'mle' needs --shards or --dataset: what to train on"),
        (
            ["--objective", "mle", "--shards", "s", "--dataset", "d"],
            "give either --shards or --dataset, not both",
        ),
    ],
)
def test_what_to_train_on_is_asked_for_in_the_objectives_words(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--model", "m", "--output_dir", "o"]) == 2
    assert capsys.readouterr().err.endswith(f"{said}.\n")


def test_flags_override_the_yaml_and_the_yaml_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("shards: from-yaml\nmodel: m\nlearning_rate: 3e-4\nbeta: 2\noutput_dir: o\n")
    script, training, _ = parse(["--config", str(config), "--beta", "7"])
    assert (script.shards, script.options.beta, training.learning_rate) == (["from-yaml"], 7.0, 3e-4)


def test_a_way_to_choose_that_does_not_exist_is_refused_with_the_options() -> None:
    with pytest.raises(UserError, match="':hardest' is no way to choose"):
        parse(["--shards", "not/there", "--model", "not/there", "--output_dir", "o", "--use", "an=2:hardest"])


def test_drop_last_that_leaves_nothing_is_refused_before_anything_is_written(
    reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cli(reference, negative_set, tmp_path / "out", "--dataloader_drop_last", "true")
    words[words.index("--per_device_train_batch_size") + 1] = "64"
    assert main(words) == 2
    assert "leaves none of the 48 groups: a step takes 64. Set it to false" in capsys.readouterr().err
    assert not (tmp_path / "out" / "trainer_job.json").exists()


def test_transformers_says_which_attention_a_model_uses(
    reference: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The attribute is private: its absence is to be noticed here, and costs the packed layout, not the result."""
    model = AutoModelForCausalLM.from_pretrained(reference)
    assert attention_implementation(model) == "sdpa"
    monkeypatch.setattr("trainer.scoring.support.attention_implementation", lambda _: None)
    assert prepare_model(model).layout == "padded"
    assert "attention implementation 'None'" in caplog.text


@pytest.mark.parametrize(
    "more",
    [
        ("--max_steps", "2"),
        ("--max_grad_norm", "0.5"),
        ("--adam_beta2", "0.9"),
        ("--dtype", "bfloat16"),
        ("--use_peft", "true"),
        ("--row_tokens", "64"),
        ("--lr_scheduler_type", "cosine"),
        ("--split", "all"),
        ("--use", "an=1"),
        ("--rank_by", "rouge"),
        ("--min_similarity", "0.2"),
        ("--max_similarity", "0.8"),
        ("--in_support", "true"),
        ("--skip_below", "0.01"),
        ("--sft_weight", "0.5"),
        ("--objective", "pss", "--pss_share", "0.5"),
        ("--objective", "pss", "--pss_passes", "2"),
        ("--objective", "pss", "--pss_mixtures", "2"),
        ("--objective", "dpo", "--train_sampling_strategy", "group_by_length"),
        ("--objective", "dpo", "--beta", "1"),
        ("--objective", "nca", "--beta", "1"),
        ("--loss_normalize", "length"),
    ],
)
def test_the_record_holds_what_decides_the_result(more: tuple[str, ...]) -> None:
    def record(*words: str) -> dict[str, Any]:
        script, training, model = parse(["--shards", "s", "--model", "m", "--output_dir", "o", *words])
        given = {"model": {}, "data": {}, "row_tokens": script.row_tokens or 1024}
        given |= {"use": script.negatives, "rank_by": script.rank_by}
        return json.loads(json.dumps(job_record(script, training, model, **given)))

    without = more[:-2]
    assert record(*more) != record(*without)
    assert record(*without, "--logging_steps", "3") == record(*without)
    assert record(*without, "--logging_first_step", "false") == record(*without)


@pytest.mark.parametrize(
    ("words", "logged"), [((), True), (("--logging_first_step", "false"), False), (("--logging_strategy", "no"), False)]
)
def test_the_first_step_is_logged_unless_told_otherwise(words: tuple[str, ...], logged: bool) -> None:
    _, training, _ = parse(["--shards", "s", "--model", "m", "--output_dir", "o", *words])
    assert training.logging_first_step is logged


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("objective", "option", "value"),
    [
        ("cpo", "sft_weight", "0.5"),
        ("cpo-rank", "sft_weight", "0.5"),
        ("cpo", "loss_normalize", "length"),
        ("nca", "beta", "1"),
        ("pss", "pss_share", "0.75"),
        ("pss", "pss_passes", "2"),
        ("pss", "pss_mixtures", "1"),
        ("cpo", "min_similarity", "0.4"),
        ("dpo", "max_similarity", "0.6"),
        ("cpo", "skip_below", "0.9"),
    ],
)
def test_an_option_of_the_command_reaches_the_training(
    objective: str, option: str, value: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    """Other weights after a step."""
    weights = []
    common = ["--objective", objective, "--max_steps", "1", "--save_strategy", "no"]
    for name, more in (("with", [f"--{option}", value]), ("without", [])):
        assert main(cli(reference, negative_set, tmp_path / name, *common, *more)) == 0
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    "words",
    [
        ("--shards", "a", "b", "--use", "an=1", "bn=2", "--lora_target_modules", "q_proj", "v_proj"),
        ("--shards", "a,b", "--use", "an=1,bn=2", "--lora_target_modules", "q_proj,v_proj"),
        (
            *("--shards", "a", "--use=an=1", "--lora_target_modules=q_proj"),
            *("--shards", "b", "--use", "bn=2", "--lora-target-modules", "v_proj"),
        ),
    ],
    ids=["words", "commas", "repeated"],
)
def test_lists_are_written_in_every_way_ours_and_inherited_ones(words: tuple[str, ...]) -> None:
    script, _, model = parse(["--model", "m", "--output_dir", "o", *words])
    assert (script.shards, script.negatives) == (["a", "b"], "an=1,bn=2")
    assert model.lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("words", "trackers"),
    [
        (("tensorboard,wandb",), ["tensorboard", "wandb"]),
        (("tensorboard", "wandb"), ["tensorboard", "wandb"]),
        (("tensorboard",), ["tensorboard"]),
        (("none",), []),
    ],
)
def test_one_tracker_or_several(words: tuple[str, ...], trackers: list[str]) -> None:
    training = parse([*MLE, "--report_to", *words])[1]
    assert training.report_to == trackers


def test_a_flag_alone_means_true() -> None:
    words = ["--model", "m", "--output_dir", "o", "--objective", "mle", "--dataset", "facts", "--from_scratch"]
    script, training, model = parse([*words, "--use_cpu", "--resume_from_checkpoint", "--use_peft"])
    assert (script.from_scratch, training.use_cpu, model.use_peft) == (True, True, True)
    assert training.resume_from_checkpoint == "true"


def test_an_inherited_flag_that_may_be_none_means_true_alone_too() -> None:
    flags = ("disable_tqdm", "greater_is_better", "hub_private_repo", "ddp_find_unused_parameters")
    for flag in flags:
        training = parse([*MLE, f"--{flag}"])[1]
        assert getattr(training, flag) is True, flag
        assert getattr(parse([*MLE, f"--{flag.replace('_', '-')}", "false"])[1], flag) is False, flag


def test_lists_of_a_yaml_file_are_written_with_commas_or_as_lists(tmp_path: Path) -> None:
    """The rule for inherited arguments is that for ours."""
    for written in ("{name}: a,b", "{name}: [a, b]", "{name}: 'a, b'"):
        names = ("lora_target_modules", "optim_target_modules", "report_to")
        content = "\n".join(written.format(name=name) for name in names)
        (tmp_path / "run.yaml").write_text(content.replace("report_to: a", "report_to: tensorboard"))
        _, training, model = parse([*MLE, "--config", str(tmp_path / "run.yaml")])
        assert model.lora_target_modules == ["a", "b"]
        assert training.optim_target_modules == ["a", "b"]
    (tmp_path / "run.yaml").write_text("report_to: tensorboard,wandb\nlora_target_modules: a\n")
    _, training, model = parse([*MLE, "--config", str(tmp_path / "run.yaml")])
    assert (training.report_to, model.lora_target_modules) == (["tensorboard", "wandb"], ["a"])


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        (("attn", "mlp"), ["attn", "mlp"]),
        (("attn,mlp",), ["attn", "mlp"]),
        (("all-linear",), "all-linear"),  # which transformers takes as a text alone, as it does a pattern
        ((".*attn.*",), ".*attn.*"),
    ],
)
def test_modules_of_an_optimiser_are_a_list_or_one_pattern(words: tuple[str, ...], modules: Any) -> None:
    assert parse([*MLE, "--optim_target_modules", *words])[1].optim_target_modules == modules
