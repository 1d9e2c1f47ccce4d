"""Options of evaluation.run: what each metric needs, and one line about every mistake."""

import re
from dataclasses import fields

import pytest

from data.command.errors import UserError
from data.command.options import load_config
from evaluation.config import JUDGE, EvaluateConfig

BASE = ["--dataset", "rows.jsonl", "--out", "o"]
MODEL = ["--model", "a=A"]
SWEEP = ["--sweep", "alpha=0,0.5", "--mle", "M", "--cpo", "C"]


def config(*words: str) -> EvaluateConfig:
    found = load_config(EvaluateConfig, [*BASE, *words], command="python -m evaluation.run")
    found.check()
    return found


def test_by_default_all_that_the_options_make_possible_is_measured() -> None:
    assert config(*MODEL).chosen_metrics() == ["truth", "text"]
    assert config(*MODEL, "--dataset", "facts").chosen_metrics() == ["correct", "truth", "text"]
    assert config(*MODEL, "--second_model", "P", "--shards", "s").chosen_metrics() == [
        *("reverse_kl", "nll", "truth", "ranking", "text")
    ]
    assert "win_rate" in config(*MODEL, "--judge.model", "gpt-3.5-turbo").chosen_metrics()


def test_chosen_metrics_come_in_one_order() -> None:
    assert config(*MODEL, "--metrics", "text, truth").chosen_metrics() == ["truth", "text"]


def test_a_sweep_brings_the_mle_model_and_its_ensembles() -> None:
    assert config(*SWEEP).alphas() == [0.0, 0.5]
    assert config(*SWEEP).sweep_models() == ["mle", "alpha-0", "alpha-0.5"]
    assert config(*MODEL).sweep_models() == []
    assert config(*MODEL, *SWEEP, "--judge.model", "m", "--against", "alpha-0.5").opponents() == ["alpha-0.5"]


def test_help_names_every_key_of_the_judge() -> None:
    (told,) = (f.metadata["help"] for f in fields(EvaluateConfig) if f.name == "judge")
    assert set(JUDGE) <= set(re.findall(r"\w+", told))
    for key in ("temperature", "max_tokens", "timeout", "retries", "concurrency"):
        assert re.search(rf"{key} \({JUDGE[key]:g}\b", told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to evaluate"),
        (["--model", "a"], "must read NAME=PATH"),
        ([*MODEL, "--model", "a=B"], "names 'a' twice"),
        (["--model", "truth=A"], "choose another name"),
        ([*MODEL, "--metrics", "win_rat"], "unknown metric 'win_rat'. Did you mean 'win_rate'?"),
        ([*MODEL, "--metrics", "win_rate"], "needs --judge.model or .reward_model"),
        (
            [*MODEL, "--metrics", "nll", "--second_model", "P", "--judge.modle", "x"],
            "unknown option --judge.modle. Did you mean 'model'?",
        ),
        ([*MODEL, "--metrics", "text", "--judge.api_key", "x"], "the key comes from $OPENAI_API_KEY only"),
        ([*MODEL, "--metrics", "reverse_kl"], "needs --second_model"),
        ([*MODEL, "--metrics", "correct"], "needs --dataset facts"),
        ([*MODEL, "--against", "b"], "--against 'b' is no model of this run"),
        ([*MODEL, "--against", "truth"], "--against belongs to metric win_rate"),
        ([*MODEL, "--judge.model", "m", "--against", "a"], "'a' is the only model"),
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
def test_mistakes_are_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config(*words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
