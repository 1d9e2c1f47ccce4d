"""recipes/study: what its YAML asks for, the order of its steps, choice of rates, aggregation; nothing is run twice."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.command.errors import UserError
from data.command.options import load_config
from evaluation.config import EvaluateConfig
from evaluation.metrics import METRICS, in_order
from evaluation.metrics.base import columns_of
from evaluation.metrics.columns import in_order as by_section
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report.files import to_json
from evaluation.report.results import Results
from negatives_gen.config import GenerateConfig
from recipes.study.aggregate import difference, over_seeds, values
from recipes.study.choice import at_an_end, choose
from recipes.study.costs import estimate, plan
from recipes.study.design import Data, Reference, Study, read_study
from recipes.study.inputs import parts_of, shaped, write_parts
from recipes.study.records import Comparison, Number, Records, read_records
from recipes.study.running import Progress, Spent, startable
from recipes.study.steps import Step, Steps, flags
from recipes.study.summary import markdown
from tests.support.commands import ROOT
from trainer.arguments import parse
from trainer.ensemble.ensembles import EnsembleConfig

STUDIES = sorted((ROOT / "recipes/study").glob("*.yaml"))
CONFIGS = {"negatives_gen": GenerateConfig, "evaluation.run": EvaluateConfig, "trainer.ensemble": EnsembleConfig}
COLUMNS = by_section(columns_of(in_order(METRICS.names())))

YAML = """
about: a world
data: {dataset: facts, task: prompt-completion, parts: {test: 30, validation: 20, train: 40}}
references: {reference: {blank: {vocab_size: 300}, part: train, options: {max_steps: 5}}}
sets:
  negatives: {reference: reference, part: train, options: {strategies: bn=2}}
  second: {reference: bn, part: train, options: {strategies: bn=2}}
training: {max_steps: 2}
rates: [1.0e-4, 1.0e-3, 1.0e-2]
seeds: [0, 1]
baseline: mle
rows:
  mle: {set: negatives, objective: mle}
  reference: {reference: reference}
  bn: {set: negatives, objective: cpo, options: {use: bn=2, beta: 5}}
  again: {set: second, objective: cpo, rate_of: bn, options: {use: bn=2, max_steps: 3}}
  both: {mle: mle, cpo: bn, alpha: 0.5}
hypotheses: {H1: {measures: [truth_logp], rows: [bn], against: [mle, reference]}}
choose_by: {truth_logp: 1}
choose_metrics: [truth]
metrics: [truth, text]
evaluation: {decode: sample, max_new_tokens: 8}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of four rows and an ensemble of two of them."""
    path = tmp_path / "world.yaml"
    path.write_text(YAML)
    return read_study(path)


class Pretence:
    """What runs steps in this test: writes the file that stands for a step, with numbers made from its name."""

    def __init__(self, fails: str = ""):
        self.ran: list[str] = []
        self.fails, self.busy, self.most = fails, 0, 0

    def __call__(self, step: Step) -> Spent:
        self.busy += step.cores
        self.most = max(self.most, self.busy)
        self.ran.append(step.name)
        time.sleep(0.001)
        self.busy -= step.cores
        if step.name == self.fails:
            raise UserError(f"step '{step.name}' failed")
        step.done.parent.mkdir(parents=True, exist_ok=True)
        if step.done.name == "report.json":
            models = [word.split("=")[0] for word in step.words[step.words.index("--model") + 1 :]]
            step.done.write_bytes(to_json(pretended(models)))
        elif step.done.name == "trainer_state.json":
            watched = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.5}, {"step": 2, "eval_loss": 2.75}]
            state = {"num_input_tokens_seen": 1000, "global_step": 2, "log_history": watched}
            step.done.write_text(json.dumps(state))
        elif step.done.name == "manifest.json":
            shards = [{"tokens": {"prompt": 5, "bn": 40}}, {"tokens": {"prompt": 5, "bn": 20}}]
            step.done.write_text(json.dumps({"shards": shards, "counts": {"rows_written": 30}}))
        else:
            step.done.touch()
        return Spent(10.0, 6.0)

    def end(self) -> None:
        raise AssertionError("nobody asked for an end")


def pretended(models: list[str]) -> Results:
    """A report in which the middle rate is the best, and bn better than mle by 0.5 +- 0.1."""
    truths = {"0.0001": -3.0, "0.001": -2.0, "0.01": -9.0, "mle": -2.0, "bn": -1.5}
    found = [Measurement(m, "", "truth_logp", Estimate(truths.get(m, -4.0), 0.2, 30)) for m in models]
    found += [
        Measurement(
            m, "", "truth_logp_difference", Estimate(truths.get(m, -4.0) - truths.get(models[0], -4.0), 0.1, 30)
        )
        for m in models[1:]
    ]
    return Results({"models": {m: {"weights_sha256": m} for m in models}}, {}, found, columns=COLUMNS)


def progress_of(study: Study, tmp_path: Path, only: list[str] | None = None) -> Progress:
    path = tmp_path / "results/study-world.json"
    return Progress(study, tmp_path / "runs", path, read_records(path), only or [])


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
    assert old in YAML
    (tmp_path / "bad.yaml").write_text(YAML.replace(old, new))
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


# --- choice and aggregation, by value


def test_the_rate_with_the_best_weighted_sum_is_chosen() -> None:
    measured = {
        "1e-05": {"reverse_kl": 100.0, "truth_logp": -60.0},
        "3e-05": {"reverse_kl": 90.0, "truth_logp": -62.0},
        "0.0001": {"reverse_kl": 85.0, "truth_logp": -75.0},
    }
    made = choose(measured, {"reverse_kl": -1, "truth_logp": 1})
    assert made["scores"] == {"1e-05": -160.0, "3e-05": -152.0, "0.0001": -160.0}
    assert made["rate"] == 3e-5
    assert not at_an_end(made)
    by_truth = choose(measured, {"truth_logp": 1})
    assert by_truth["rate"] == 1e-5
    assert at_an_end(by_truth)
    assert choose({"0.1": {"x": 1.0}, "0.01": {"x": 1.0}}, {"x": 1})["rate"] == 0.01
    with pytest.raises(UserError, match="choose_by names 'nll', which was not measured"):
        choose(measured, {"nll": -1})


def test_the_error_over_seeds_is_that_of_prompts_and_of_seeds() -> None:
    found = over_seeds([Number(1.0, 0.3, 500), Number(2.0, 0.4, 500), Number(6.0, 0.5, 500)])
    # Squared errors 0.09, 0.16, 0.25; variance of 1, 2, 6 is 7, over three seeds.
    assert (found.mean, found.error, found.seeds) == (3.0, pytest.approx(math.sqrt(0.5 / 3 + 7 / 3)), 3)
    assert not found.counts
    alone = over_seeds([Number(1.0, 0.3, 500)])
    assert (alone.error, alone.counts) == (0.3, True)
    assert over_seeds([Number(0.0, None, 500), Number(0.0, None, 500)]).error == 0.0
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def compared(row: str, against: str, seed: int, *, value: float, theirs: float, error: float | None) -> Comparison:
    paired = {} if error is None else {"nll": Number(value - theirs, error, 500)}
    own, other = {"nll": Number(value, 0.3, 500)}, {"nll": Number(theirs, 0.4, 500)}
    return Comparison(row, against, seed, own, other, paired, {row: f"{row}{seed}", against: against})


def test_differences_are_paired_where_the_report_pairs_them() -> None:
    found = [
        compared("an", "mle", 0, value=2.0, theirs=2.5, error=0.1),
        compared("an", "mle", 1, value=2.2, theirs=2.5, error=0.1),
        compared("an", "bn", 0, value=2.0, theirs=1.0, error=None),
    ]
    paired = difference(found, "an", "mle", "nll")
    assert paired is not None
    assert (paired.mean, paired.seeds, paired.paired) == (pytest.approx(-0.4), 2, True)
    assert paired.error == pytest.approx(math.sqrt(0.01 + 0.02 / 2))
    apart = difference(found, "an", "bn", "nll")
    assert apart is not None
    assert (apart.mean, apart.error, apart.paired) == (1.0, pytest.approx(0.5), False)
    assert difference(found, "bn", "mle", "nll") is None
    own = values(found, "an", "nll")  # a seed counts once, however often it was compared
    assert own is not None
    assert (own.mean, own.seeds) == (pytest.approx(2.1), 2)


# --- running


def test_a_study_runs_to_its_end_and_nothing_is_run_twice(tmp_path: Path, study: Study) -> None:
    runner = Pretence()
    assert progress_of(study, tmp_path).run(runner) == []
    assert len(runner.ran) == len(set(runner.ran)) == 31
    assert runner.most <= 2
    order = {name: place for place, name in enumerate(runner.ran)}
    assert order["reference reference"] < order["set negatives"] < order["choose mle"] < order["evaluate mle mle 0"]
    records = read_records(tmp_path / "results/study-world.json")
    assert records.rates == {"mle": 1e-3, "bn": 1e-3}
    assert len(records.comparisons) == 12
    assert records.training["train again 0.001 1"] == {"tokens": 1000, "steps": 2}
    assert records.sets["set negatives"] == {"groups": 30, "tokens": {"prompt": 10, "bn": 60}}
    assert records.steps["choose bn"] == {"wall": 10.0, "processor": 6.0}

    again = Pretence()
    assert progress_of(study, tmp_path).run(again) == []
    assert again.ran == []


def test_what_is_recorded_needs_no_runs_and_a_further_row_only_its_own(tmp_path: Path, study: Study) -> None:
    progress_of(study, tmp_path, ["bn"]).run(Pretence())
    (tmp_path / "runs").rename(tmp_path / "lost")
    runner = Pretence()
    progress_of(study, tmp_path, ["H1"]).run(runner)
    # The rates are known, and mle and bn beside mle: what is left is the reference's, for which the rows are made anew.
    assert not any(name.startswith(("choose", "evaluate bn mle")) for name in runner.ran)
    assert {f"evaluate bn reference {seed}" for seed in (0, 1)} <= set(runner.ran)
    trained = {name for name in runner.ran if name.startswith("train")}
    assert trained == {f"train {row} 0.001 {seed}" for row in ("bn", "mle") for seed in (0, 1)}


def test_a_step_that_fails_ends_the_run_and_what_was_done_is_kept(tmp_path: Path, study: Study) -> None:
    runner = Pretence(fails="train bn 0.001 0")
    with pytest.raises(UserError, match=r"step 'train bn 0\.001 0' failed"):
        progress_of(study, tmp_path).run(runner)
    assert "choose bn" not in runner.ran
    again = Pretence()
    progress_of(study, tmp_path).run(again)
    assert set(runner.ran) & set(again.ran) == {"train bn 0.001 0"}


def test_no_step_is_begun_after_the_time_is_up(tmp_path: Path, study: Study) -> None:
    runner = Pretence()
    left = progress_of(study, tmp_path).run(runner, until=0.0)
    assert runner.ran == []
    assert names(left)[:2] == ["blank reference", "reference reference"]


def test_a_plan_estimates_from_what_was_timed(tmp_path: Path, study: Study) -> None:
    records = Records(
        steps={
            "train bn 0.001 0": {"wall": 40.0, "processor": 30.0},
            "train mle 0.001 0": {"wall": 20.0, "processor": 1.0},
        }
    )
    assert estimate(Step("train bn 0.01 1", (), Path("x")), records.steps) == 40.0
    assert estimate(Step("train again 0.01 1", (), Path("x")), records.steps) == 30.0
    assert estimate(Step("choose bn", (), Path("x")), records.steps) is None
    lines = plan(study, tmp_path, records).splitlines()
    assert "     40 s  train bn 0.01 0" in lines
    assert lines.count("     40 s  train bn 0.001 1") == 1
    assert "      ? s  evaluate both mle 1" in lines
    # mle 4 x 20 s and bn 4 x 40 s, again 2 x 30 s: 300 s on two cores; the other 21 steps were never timed.
    assert lines[-1] == "31 steps are left, 0.0 hours on 2 cores; 21 steps of a kind that was never timed come on top."


# --- records and page


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Records(comparisons=[compared("an", "mle", 0, value=2.0, theirs=2.5, error=0.1)])
    made.choices["an"] = choose({"0.1": {"x": 1.0}, "0.2": {"x": 2.0}}, {"x": 1})
    made.write(tmp_path / "records.json")
    assert read_records(tmp_path / "records.json") == made
    (tmp_path / "records.json").write_text('{"choices": {}}')
    with pytest.raises(UserError, match=r"records.json' is damaged: .*Take it from git again"):
        read_records(tmp_path / "records.json")


def test_a_model_that_was_trained_anew_and_came_out_otherwise_is_named() -> None:
    first = compared("an", "mle", 0, value=2.0, theirs=2.5, error=0.1)
    again = replace(first, against="bn", weights={"an": "other", "bn": "bn"})
    assert Records(comparisons=[first]).made_anew() == []
    assert Records(comparisons=[first, again]).made_anew() == ["an, seed 0"]


def test_the_page_shows_what_counts(tmp_path: Path, study: Study) -> None:
    progress_of(study, tmp_path).run(Pretence())
    page = markdown(study, read_records(tmp_path / "results/study-world.json"))
    assert "`make study TASK=world`" in page
    # Two seeds that are alike: the error is that of the prompts, 0.2 of a row and 0.1 of a difference.
    assert "| bn | 2 | -1.50 ± 0.20 | **+0.50 ± 0.10** |" in page
    assert "| mle | 2 | -2.00 ± 0.20 |  |" in page
    assert "| bn | reference | 2 | **+2.50 ± 0.10** |" in page
    assert "| bn | 0.001 |  | 0.0001: -3.000, 0.001: -2.000, 0.01: -9.000 |" in page
    assert "| again | 2 | 1,000 | 6 s |" in page
    assert "| negatives | 30 | bn 2 |" in page
    assert "Validation loss, reference reference by step: 1: 2.500, 2: 2.750; least at 1." in page


def test_a_page_of_nothing_says_so(study: Study) -> None:
    assert markdown(study, Records()).count("Nothing yet.") >= 2
