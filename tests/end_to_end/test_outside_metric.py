"""A metric from outside of the repository in the real commands: options, record, reports, a sweep, the comparison.

The answers are a stub engine's, kept in the store beforehand, so that the commands start none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import negatives_gen.models.engine
from data.command.errors import UserError
from data.command.options import load_config
from evaluation.config import EvaluateConfig
from evaluation.metrics import METRICS
from evaluation.metrics.base import RECORD
from evaluation.report.files import report_schema
from evaluation.run import evaluate
from negatives_gen.models.engine import Sample
from tests.support.commands import ROOT, fork_command, run_command

pytestmark = pytest.mark.seconds

MODULE = """
from dataclasses import dataclass

from data.command.errors import UserError
from data.command.options import option
from evaluation.metrics.base import HIGHER, LOWER, Column, Metric, PromptMetric


@dataclass(frozen=True)
class Options:
    word: str = option("a", "the word that is counted")

    def check(self):
        if not self.word:
            raise UserError("--word is empty. Give one.")


class Words(PromptMetric):
    name = "words"
    summary = "how often a word is said"
    Options = Options
    columns = (
        Column("said", "said", "{:.2f}", "how often an answer says the word", better=LOWER, unit="times", paired=True,
               figure=True),
    )
    record_schema = {"words": {"type": "object", "required": ["word"], "properties": {"word": {"type": "string"}}}}

    def values(self, answers):
        return {"said": [float(text.split().count(self.options.word)) for text in answers.texts]}


class Most(Words):
    name = "most"
    record_schema = {}
    columns = (Column("most", "most", "{:.2f}", "the same, and more is better", better=HIGHER),)

    def values(self, answers):
        return {"most": super().values(answers)["said"]}
"""
# How often the answers of each model say "the".
TIMES = {"mle": 4, "alpha-0": 3, "alpha-0.5": 1, "alpha-0.9": 2}


class RepeatingEngineStub:
    """Answers everything with a word, as often as the model's directory says."""

    def __init__(self, model: str, **_: Any):
        self.times = TIMES[Path(model).name]

    def decode(self, prompts: list[list[int]], **_: Any) -> list[Sample]:
        return [Sample([5, 0], "the " * self.times, "stop", -1.0, None) for _ in prompts]


@pytest.fixture
def words(mle: Path, cpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep whose answers are in the store."""
    monkeypatch.setattr(negatives_gen.models.engine, "Engine", RepeatingEngineStub)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "counting.py").write_text(MODULE)
    options = {
        "sweep": "alpha=0,0.5,0.9", "mle": str(mle), "cpo": str(cpo), "dataset": "facts", "limit": "80",
        "store": str(tmp_path / "store"),
    }  # fmt: skip
    given = [word for key, value in options.items() for word in (f"--{key}", value)]
    first = [*given, "--metrics", "text", "--out", str(tmp_path / "first")]
    evaluate(load_config(EvaluateConfig, first, command="test"))
    return given


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_a_metric_of_ones_own_is_measured_reported_chosen_by_and_compared(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"PYTHONPATH": f"{tmp_path / 'mine'}:{ROOT}"}
    both, alone = tmp_path / "both", tmp_path / "alone"
    asked = ["--metrics", "text", "counting:Words", "--word", "the", "--out", str(alone)]
    done = run_command("evaluation.run", *words, *asked, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    made = report(alone)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    schema = report_schema(["counting:Words"])
    jsonschema.validate(made, schema)
    with pytest.raises(jsonschema.ValidationError, match="7 is not of type 'string'"):
        jsonschema.validate({**made, "job": {**made["job"], "words": {"word": 7}}}, schema)

    # What it is, and which source it is of, is in the record; and its option.
    source = hashlib.sha256((tmp_path / "mine" / "counting.py").read_bytes()).hexdigest()
    assert made["job"]["entries"] == {"words": {"entry": "counting:Words", "source_sha256": source}}
    assert made["job"]["metrics"] == ["text", "words"]
    assert made["job"]["words"] == {"word": "the"}
    assert made["job"].keys() == {*RECORD, "words"} - {"max_length"}
    numbers = {(m["metric"], m["model"]): m["mean"] for m in made["measurements"]}
    assert {model: numbers["said", model] for model in TIMES} == TIMES
    assert numbers["said_difference", "alpha-0.5"] == -3  # from that of mle
    assert made["columns"]["said"]["better"] == "lower"

    # Less is better: of the ensembles alpha-0.5 says it least.
    assert (made["job"]["sweep"]["metric"], made["job"]["sweep"]["proposed"]) == ("said", 0.5)
    assert "Proposed: alpha = 0.5, by said" in done.stdout
    text, page = (alone / "report.md").read_text(), (alone / "report.html").read_text()
    assert "| **1.00** | -3.00 |" in " ".join(text.split())  # of alpha-0.5, the best
    assert "| said | said minus mle |" in " ".join(text.split())
    for shown in (done.stdout, text):
        assert "\n- alpha-0.5: said 1.00, 3.00 below mle, 1.00 below alpha-0.9.\n" in shown
    assert "- said: how often an answer says the word." in text
    assert "- entries.words.entry: counting:Words" in text
    assert ">said minus mle</th>" in page
    assert "said of the ensembles over alpha" in page
    assert "said of mle, alpha-0, alpha-0.5 and alpha-0.9 with standard errors; less is better." in page

    # With another one, for which more is better and which is asked for first, another alpha is proposed.
    asked = ["--metrics", "counting:Most,counting:Words", "--word", "the", "--out", str(both)]
    done = fork_command("evaluation.run", *words, *asked, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    sweep = report(both)["job"]["sweep"]
    assert (sweep["metric"], sweep["proposed"]) == ("most", 0)

    # The comparison reads what the columns are from the reports, without the module.
    done = fork_command("evaluation.compare", str(alone), str(both))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run model decoding said most said minus mle" in " ".join(done.stdout.split())
    assert "both alpha-0.9 greedy 2.00 2.00 -2.00" in " ".join(done.stdout.split())


def test_options_of_an_outside_metric_are_known_only_with_it_and_checked(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "mine")
    given = [*words, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="unknown key 'word'"):
        load_config(EvaluateConfig, [*given, "--metrics", "text", "--word", "the"], command="test")
    config = load_config(EvaluateConfig, [*given, "--metrics", "counting:Words", "--word", ""], command="test")
    with pytest.raises(UserError, match=r"--word is empty\. Give one\."):
        config.check()
    with pytest.raises(UserError, match="metric 'counting:MODULE': module 'counting' defines no 'MODULE'"):
        load_config(EvaluateConfig, [*given, "--metrics", "counting:MODULE"], command="test")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'Column("said"',
            'Column("win_rate"',
            "metric 'words' has a column 'win_rate', as metric 'win_rate' has. Rename it.",
        ),
        (
            'name = "words"',
            'name = "second_model"',
            "metric 'second_model' has 'second_model' in the record, as metric 'truth' has",
        ),
        ('name = "words"', 'name = "seed"', "calls itself 'seed', a key of the records"),
        ('name = "words"', 'name = "sweep"', "calls itself 'sweep', a key of the records"),
        ('name = "words"', 'name = "max_length"', "calls itself 'max_length', a key of the records"),
        (
            'record_schema = {"words"',
            'record_schema = {"models": {}, "words"',
            "metric 'words' has 'models' in the record, as every evaluation has. Rename it.",
        ),
        ("better=LOWER", 'better="less"', "metric '.*:Words' has better 'less', which is none of higher, lower, nei"),
        (
            '    columns = (\n        Column("said"',
            '    others = (\n        Column("said"',
            "metric '.*:Words' has no columns",
        ),
        ("def values", "def valeus", "metric 'colliding_.*' lacks values: see evaluation.metrics.base.Metric"),
        ("class Words(PromptMetric)", "class Words(Metric)", "metric '.*:Words' is of neither answers nor checkpoint"),
    ],
)
def test_a_metric_that_cannot_be_measured_or_takes_anothers_place_in_the_report_is_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "mine")
    for known in ("_paths", "_outside"):  # those of other tests are forgotten
        monkeypatch.setattr(METRICS, known, {})
    assert old in MODULE
    module = f"colliding_{abs(hash(new))}"
    (tmp_path / "mine" / f"{module}.py").write_text(MODULE.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        load_config(EvaluateConfig, [*words, "--out", "out", "--metrics", f"{module}:Words"], command="test").check()
