"""Options of evaluation.run: what each metric needs, and one line about every mistake."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.command.options import help_text, load_config
from evaluation.config import EvaluateConfig
from evaluation.judging.base import JudgeOptions
from evaluation.metrics import METRICS
from evaluation.metrics.base import Request
from evaluation.run import ABOUT, USAGE

BASE = ["--dataset", "rows.jsonl", "--out", "o"]
MODEL = ["--model", "a=A"]
JUDGED = [*MODEL, "--judge.model", "m", "--judge.base_url", "http://h/v1"]
SWEEP = ["--sweep", "alpha=0,0.5", "--mle", "M", "--cpo", "C"]


def config(*words: str) -> EvaluateConfig:
    found = load_config(EvaluateConfig, [*BASE, *words], command="python -m evaluation.run")
    found.check()
    return found


# A metric that is added and needs nothing is measured by default too.
SHIPPED = (
    "reverse_kl",
    "nll",
    "pmi",
    "relevance",
    "correct",
    "truth",
    "ranking",
    "similarity",
    "text",
    "win_rate",
    "mauve",
)


def metrics(*words: str) -> list[str]:
    return [metric.name for metric in config(*words).chosen_metrics() if metric.name in SHIPPED]


def test_by_default_all_that_the_options_make_possible_is_measured() -> None:
    assert metrics(*MODEL) == ["truth", "text"]
    assert metrics(*MODEL, "--dataset", "facts") == ["correct", "truth", "text"]
    assert metrics(*MODEL, "--second_model", "P", "--shards", "s") == [
        *("reverse_kl", "nll", "truth", "ranking", "text")
    ]
    assert "win_rate" in metrics(*JUDGED)
    assert metrics(*MODEL, "--embedder", "E") == ["similarity", "relevance", "truth", "text"]


def test_what_takes_a_pass_of_its_own_is_measured_where_it_is_named() -> None:
    assert "pmi" not in metrics(*MODEL, "--second_model", "P")
    assert metrics(*MODEL, "--second_model", "P", "--metrics", "pmi", "nll") == ["pmi", "nll"]


def test_chosen_metrics_come_as_they_are_asked_for() -> None:
    assert metrics(*MODEL, "--metrics", "text, truth") == ["text", "truth"]


def test_a_sweep_brings_the_mle_model_and_its_ensembles() -> None:
    assert config(*SWEEP).alphas() == [0.0, 0.5]
    assert config(*SWEEP).sweep_models() == ["mle", "alpha-0", "alpha-0.5"]
    assert config(*MODEL).sweep_models() == []
    judged = config(*JUDGED, *SWEEP, "--against", "alpha-0.5")
    assert judged.metric_options["win_rate"].opponents == ["alpha-0.5"]


@pytest.mark.parametrize(
    "words",
    [
        ["--sweep", "alpha=0,0.1,0.5"],
        ["--sweep", "alpha=0", "0.1", "0.5"],
        ["--sweep", "alpha=0", "0.1", "--sweep", "0.5"],
        ["--sweep", "alpha=0,0.1", "--sweep", "alpha=0.5"],
    ],
)
def test_a_sweep_takes_every_syntax_of_a_list(words: list[str]) -> None:
    assert config(*words, "--mle", "M", "--cpo", "C").alphas() == [0.0, 0.1, 0.5]


def test_a_metric_is_asked_what_it_needs_with_the_models_and_the_metrics_that_were_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Request] = []

    def needs(options: object, request: Request) -> str:
        asked.append(request)
        return ""

    monkeypatch.setattr(METRICS.load("text"), "needs", needs)
    assert config(*MODEL, "--metrics", "text,truth").chosen_metrics()
    assert asked[-1] == Request("rows.jsonl", ["a"], ["text", "truth"])
    assert config(*MODEL).chosen_metrics()
    assert asked[-1] == Request("rows.jsonl", ["a"], [])


def test_help_says_of_every_metric_what_it_measures_and_names_none_elsewhere() -> None:
    told = " ".join(help_text(EvaluateConfig, usage=USAGE, about=ABOUT).split())
    for metric in map(METRICS.load, METRICS.names()):
        assert f"{metric.name}: {metric.summary}" in told
    about = " ".join(re.findall(r"\w+", ABOUT.lower()))
    assert [name for name in METRICS.names() if re.search(rf"\b{name.replace('_', ' ')}\b", about)] == []


def test_help_names_every_key_of_the_judge_with_its_default() -> None:
    told = " ".join(help_text(EvaluateConfig, usage="x", about="").split())
    for key in fields(JudgeOptions):
        assert f"--judge.{key.name} " in told
    for default in ("dolly", "both", "0.0", "8", "16", "60.0"):
        assert f"(default: {default})" in told


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "runs/cpo", "b=runs/other"],
        ["--model", "runs/cpo,b=runs/other"],
        ["--model", "runs/cpo/", "--model", "b=runs/other"],
    ],
)
def test_a_bare_path_is_named_by_its_last_part(words: list[str]) -> None:
    assert list(config(*words).models()) == ["cpo", "b"]
    assert config(*words, "--decode", "beam2", "greedy").decode == ["beam2", "greedy"]
    assert config(*words, "--metrics", "text", "truth").metrics == ["text", "truth"]
    asked = config(*words, *JUDGED[2:], "--judge.timeout", "5", "--against", "truth", "cpo")
    options = asked.metric_options["win_rate"]
    assert (options.opponents, options.judge.timeout) == (["truth", "cpo"], 5.0)


def test_a_bare_path_may_hold_an_equals_sign() -> None:
    assert config("--model", "runs/lr=1e-5/cpo", "b=runs/lr=2").models() == {
        "cpo": "runs/lr=1e-5/cpo",
        "b": "runs/lr=2",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to evaluate"),
        (["--model", "a="], "must read NAME=PATH"),
        (["--model", "/"], "must read NAME=PATH"),
        (["--model", "runs/a", "other/a"], "names 'a' twice; give each checkpoint its own name, NAME=PATH"),
        ([*MODEL, "--model", "a=B"], "names 'a' twice"),
        (["--model", "truth=A"], "choose another name"),
        ([*MODEL, "--metrics", "win_rat"], "unknown metric 'win_rat'. Did you mean 'win_rate'?"),
        ([*MODEL, "--metrics", "win_rate"], "needs --judge.model or .reward_model"),
        (
            [*MODEL, "--metrics", "nll", "--second_model", "P", "--judge.modle", "x"],
            "unknown key 'judge.modle' on the command line of python -m evaluation.run. Did you mean 'judge.model'?",
        ),
        ([*JUDGED, "--judge.orders", "none"], "--judge.orders must be both or paper"),
        ([*JUDGED, "--judge.seed", "x"], "'judge.seed' on the command line of"),
        ([*MODEL, "--judge.template", "wiki", "--metrics", "win_rate"], "needs --judge.model or .reward_model"),
        ([*MODEL, "--metrics", "text", "--judge.api_key", "x"], "the key comes from $OPENAI_API_KEY only"),
        ([*MODEL, "--metrics", "reverse_kl"], "needs --second_model"),
        ([*MODEL, "--metrics", "correct"], "needs --dataset facts"),
        ([*MODEL, "--judge.max_cost", "1"], "--judge.max_cost does nothing without --judge.model or .reward_model."),
        ([*MODEL, "--use", "an=4"], "--use does nothing without --shards. Give that too, or leave it out."),
        ([*MODEL, "--second_model_dtype", "bfloat16"], "--second_model_dtype does nothing without --second_model."),
        (
            [*MODEL, "--metrics", "text", "--embedder", "x"],
            "--embedder does nothing: --metrics lacks 'relevance' and 'similarity'. Add one, or leave it out.",
        ),
        ([*MODEL, "--metrics", "text", "--featuriser", "x"], "--metrics lacks 'mauve'. Add it, or leave it out."),
        ([*MODEL, "--metrics", "pmi"], "metric 'pmi' needs --second_model. Give it."),
        ([*MODEL, "--judge.model", "m"], "needs a key and $OPENAI_API_KEY is not set"),
        ([*JUDGED, "--judge.template", "none"], "judge's template 'none' cannot be read"),
        ([*MODEL, "--seed", "-4"], "--seed must be from 0 to 2^32 - 1, got -4"),
        ([*MODEL, "--against", "b"], "--against 'b' is no model of this run"),
        ([*MODEL, "--against", "truth"], "--against belongs to metric win_rate"),
        ([*JUDGED, "--against", "a"], "'a' is the only model"),
        ([*MODEL, "--metrics", " ,"], "names none"),
        ([*SWEEP, "--out", "s3://bucket/x"], "--out 's3://bucket/x' is a URL"),
        ([*MODEL, "--limit", "0"], "--limit must be at least 1"),
        ([*MODEL, "--split", "half"], "unknown split 'half'"),
        ([*MODEL, "--embedder", "reference"], "one model for all checkpoints"),
        ([*MODEL, "--second_model_dtype", "int8"], "unknown --second_model_dtype 'int8'. Use one of float32, bfloat16"),
        ([*MODEL, "--out", "x/", "--store", "y/../x"], "--store and --out are both 'x/'"),
        ([*MODEL, "--mle", "M"], "belong to --sweep"),
        (["--sweep", "alpha=0,0.5", "--mle", "M"], "needs --mle and --cpo"),
        (["--sweep", "beta=0", "--mle", "M", "--cpo", "C"], "must read alpha=A,B"),
        (["--sweep", "alpha=0,2", "--mle", "M", "--cpo", "C"], "outside [0, 1]"),
        (["--sweep", "alpha=0,0", "--mle", "M", "--cpo", "C"], "given twice"),
        (["--model", "mle=A", *SWEEP], "has the name of a model of --sweep"),
    ],
)
def test_mistakes_in_the_options_are_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config(*words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_path_with_an_equals_sign_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-5" / "checkpoint-10").mkdir(parents=True)
    assert config("--model", "lr=1e-5/checkpoint-10").models() == {"checkpoint-10": "lr=1e-5/checkpoint-10"}
    (tmp_path / "1e-5" / "checkpoint-10").mkdir(parents=True)  # both are there: as it is written
    assert config("--model", "lr=1e-5/checkpoint-10").models() == {"lr": "1e-5/checkpoint-10"}
    assert config("--model", "mle=hub/model").models() == {"mle": "hub/model"}
