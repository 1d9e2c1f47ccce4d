"""recipes/study: what its YAML asks for, its parts of the data, its steps in their order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.command.options import load_config
from evaluation.config import EvaluateConfig
from negatives_gen.config import GenerateConfig
from recipes.study.design import Data, Reference, Study, read_study
from recipes.study.inputs import parts_of, shaped, write_parts
from recipes.study.records import Records, read_records
from recipes.study.running import startable
from recipes.study.steps import Step, Steps, flags
from recipes.study.summary import markdown
from tests.support.commands import ROOT
from tests.support.studies import STUDY
from trainer.arguments import parse
from trainer.ensemble.ensembles import EnsembleConfig

STUDIES = sorted((ROOT / "recipes/study").glob("*.yaml"))
CONFIGS = {"negatives_gen": GenerateConfig, "evaluation.run": EvaluateConfig, "trainer.ensemble": EnsembleConfig}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of four rows and an ensemble of two of them."""
    path = tmp_path / "world.yaml"
    path.write_text(STUDY)
    return read_study(path)


# --- what the YAML asks for


def test_every_hypothesis_is_in_a_study() -> None:
    page = (ROOT / "docs/results/hypotheses.md").read_text()
    written = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| H")}
    assert {name for path in STUDIES for name in read_study(path).hypotheses} == written


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_keeps_the_rules_written_down_before_its_runs(path: Path) -> None:
    study = read_study(path)
    assert study.data.parts["test"] >= 500
    assert len(study.seeds) >= 3
    assert all(len(study.rates_of(row)) >= 3 for row in study.rows.values() if row.trained and not row.rate_of)
    batch = {row.options.get("per_device_train_batch_size") for row in study.rows.values()}
    assert batch == {None}  # equal batches; steps differ only where passes are the question
    assert path.read_text().splitlines()[1] == f"# make study TASK={path.stem}"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_page_is_what_its_records_make(path: Path) -> None:
    page = ROOT / f"docs/results/study-{path.stem}.md"
    records = read_records(page.with_suffix(".json"))
    assert page.is_file() == bool(records.comparisons)
    assert not page.is_file() or page.read_text() == markdown(read_study(path), records)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_command_of_a_study_is_taken_by_its_own_options(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    rates = {row.name: study.rates_of(row)[0] for row in study.rows.values() if row.trained}
    steps = Steps(study, tmp_path, Records(), rates)
    for row in rates:
        if not study.rows[row].rate_of:
            steps.choose(study.rows[row])
    checked: set[str] = set()
    for step in steps.of():
        if step.kind in checked:
            continue
        checked.add(step.kind)
        module, *words = step.words
        if module == "trainer.run":
            _, training, _ = parse(list(words))
            assert training.include_num_input_tokens_seen == "all"
        elif module in CONFIGS:
            load_config(CONFIGS[module], list(words), command="").check()
    assert {kind.split(" ")[0] for kind in checked} >= {"reference", "set", "train", "choose", "evaluate"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("baseline: mle", "baseline: lme", "baseline names 'lme'"),
        ("objective: cpo, rate_of: bn", "rate_of: bn", "must say an objective, a reference, or mle, cpo and alpha"),
        ("rates: [1.0e-4, 1.0e-3, 1.0e-2]", "rates: [1.0e-4, 1.0e-3]", "fewer than three learning rates"),
        ("about: a world", "abuot: a world", "unknown key 'abuot'. Did you mean 'about'?"),
        ("part: train, options: {max_steps: 5}", "part: rest, options: {max_steps: 5}", "names 'rest'"),
        ("seeds: [0, 1]\n", "", "lacks something"),
        ("set: negatives, objective: mle", "set: positives, objective: mle", "names 'positives'"),
        ("  bn: {set", "  reference: {reference: reference}\n  bn: {set", "is not valid YAML"),
    ],
)
def test_a_study_that_is_at_odds_is_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in STUDY
    (tmp_path / "bad.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(UserError) as error:
        read_study(tmp_path / "bad.yaml")
    assert said in str(error.value)


def test_parts_have_no_row_in_common_and_do_not_depend_on_the_order() -> None:
    rows = [{"text": f"{'x' * length}\nrest {length}"} for length in range(1, 41)]
    data = Data("stories", "continuation", {"test": 5, "validation": 3, "train": 0}, True, shortest=11, longest=30)
    parts = parts_of(rows, data)
    assert {name: len(members) for name, members in parts.items()} == {"test": 5, "validation": 3, "train": 12}
    texts = [row["text"] for members in parts.values() for row in members]
    assert sorted(map(len, texts)) == list(range(11, 31))
    assert parts_of(rows[::-1], data) == parts
    with pytest.raises(UserError, match="has 20 rows of 11 to 30 characters, and the parts need 25"):
        parts_of(rows, replace(data, parts={"test": 20, "train": 5}))


def test_parts_are_written_once(tmp_path: Path, study: Study) -> None:
    write_parts(study.data, tmp_path)
    counts = {name: len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in study.data.parts}
    assert counts == {"test": 30, "validation": 20, "train": 40} == json.loads((tmp_path / "counts.json").read_text())
    (tmp_path / "test.jsonl").write_text("")
    write_parts(study.data, tmp_path)
    assert (tmp_path / "test.jsonl").read_text() == ""


def test_a_shape_changes_what_config_json_has_and_nothing_else() -> None:
    assert json.loads(shaped('{"hidden_size": 8, "vocab_size": 9}', {"hidden_size": 4})) == {
        "hidden_size": 4,
        "vocab_size": 9,
    }
    with pytest.raises(UserError, match=r"config\.json has no 'width'"):
        shaped('{"hidden_size": 8}', {"width": 4})
    assert Reference("r", "train", shape={"hidden_size": 4}).from_scratch


# --- steps


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


def test_without_a_rate_each_row_tries_all_and_with_one_it_has_all_seeds(tmp_path: Path, study: Study) -> None:
    undecided = names(Steps(study, tmp_path, Records(), {}).of())
    rates = ("0.0001", "0.001", "0.01")
    assert [name for name in undecided if name.startswith("train")] == [
        f"train {row} {rate} 0" for row in ("mle", "bn") for rate in rates
    ]
    assert [name for name in undecided if name.startswith("choose")] == ["choose mle", "choose bn"]
    assert not any(name.startswith("evaluate") for name in undecided)

    decided = names(Steps(study, tmp_path, Records(), {"mle": 1e-3, "bn": 1e-2}).of())
    assert [name for name in decided if name.startswith("train")] == [
        f"train {row} {rate} {seed}"
        for row, rate in (("mle", "0.001"), ("bn", "0.01"), ("again", "0.01"))
        for seed in (0, 1)
    ]
    assert [name for name in decided if name.startswith("set")] == ["set negatives", "set second 0", "set second 1"]
    pairs = [
        ("mle", "mle"),
        ("reference", "mle"),
        ("bn", "mle"),
        ("again", "mle"),
        ("both", "mle"),
        ("bn", "reference"),
    ]
    expected = {f"evaluate {row} {other} {seed}" for row, other in pairs for seed in (0, 1)}
    assert {name for name in decided if name.startswith("evaluate")} == expected


def test_only_what_a_hypothesis_or_row_needs_is_run(tmp_path: Path, study: Study) -> None:
    found = names(Steps(study, tmp_path, Records(), {"mle": 1e-3, "bn": 1e-2}).of(["H1"]))
    assert not any("again" in name or "both" in name or "second" in name for name in found)
    assert "evaluate bn reference 1" in found
    assert "evaluate reference mle 1" in found
    of_row = names(Steps(study, tmp_path, Records(), {"mle": 1e-3, "bn": 1e-2}).of(["again"]))
    assert {"train bn 0.01 1", "set second 1", "train again 0.01 1", "evaluate again mle 1"} <= set(of_row)
    assert "evaluate bn mle 1" not in of_row
    with pytest.raises(UserError, match=r"has no hypothesis or row 'agian'\. Did you mean 'again'"):
        study.comparisons(["agian"])


def test_a_step_says_what_comes_first_and_what_it_is_told(tmp_path: Path, study: Study) -> None:
    steps = {step.name: step for step in Steps(study, tmp_path, Records(), {"mle": 1e-3, "bn": 1e-2}).of()}
    again = steps["train again 0.01 1"]
    assert again.needs == ("set second 1",)
    assert steps["set second 1"].needs == ("train bn 0.01 1",)
    assert steps["set second 1"].cores == 2
    options = dict(zip(again.words[1::2], again.words[2::2], strict=True))
    assert options["--model"] == str(tmp_path / "rows/bn/0.01/seed-1")
    assert (options["--max_steps"], options["--learning_rate"], options["--seed"]) == ("3", "0.01", "1")
    evaluation = steps["evaluate bn reference 1"]
    assert set(evaluation.needs) == {
        "reference reference",
        "train bn 0.01 1",
        "evaluate bn mle 1",
        "evaluate reference mle 1",
    }
    models = evaluation.words[evaluation.words.index("--model") + 1 :]
    assert [word.split("=")[0] for word in models] == ["reference", "bn"]  # the first is what the report compares with
    assert str(tmp_path / "data/test.jsonl") in evaluation.words
    assert all(need in steps for step in steps.values() for need in step.needs)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_ranked_groups_are_of_the_half_that_is_evaluated(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    rates = {row.name: study.rates_of(row)[0] for row in study.rows.values() if row.trained}
    steps = {step.name: step.words for step in Steps(study, tmp_path, Records(), rates).of([study.baseline])}
    evaluation = steps[f"evaluate {study.baseline} {study.baseline} 0"]
    assert evaluation[evaluation.index("--split") + 1] in ("all", "test")
    assert ("--shards" in evaluation) == bool(study.held_out)
    if study.held_out:
        words = steps[f"set {study.held_out}"]
        assert words[words.index("--split") + 1] == "test"
        assert words[words.index("--test_dataset") + 1] == str(tmp_path / "data/test.jsonl")


def test_options_become_words() -> None:
    assert flags({"a": True, "b": 1e-5, "c": [1, "x"], "d": 3}) == [
        "--a",
        "true",
        "--b",
        "1e-05",
        "--c",
        "1,x",
        "--d",
        "3",
    ]


def test_two_cores_are_filled_and_no_more() -> None:
    def step(name: str, cores: int = 1, *needs: str) -> Step:
        return Step(name, (), Path(name), needs, cores)

    one, two, whole, later = step("one"), step("two"), step("whole", 2), step("later", 1, "whole")
    assert startable([one, two, whole, later], []) == [one, two]
    assert startable([one, whole, two], [one]) == []  # `whole` is next: else it would wait for ever
    assert startable([whole, two], []) == [whole]
    assert startable([later, whole], [whole]) == []
    assert startable([later, two], []) == [later, two]
