"""recipes/study: choice of rates and aggregation by value, runs that go on and run nothing twice, records and page."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from data.command.errors import UserError
from recipes.study.aggregate import difference, over_seeds, values
from recipes.study.choice import at_an_end, choose
from recipes.study.costs import estimate, plan
from recipes.study.design import Study, read_study
from recipes.study.records import Comparison, Number, Records, read_records
from recipes.study.running import Progress
from recipes.study.steps import Step
from recipes.study.summary import markdown
from tests.support.studies import STUDY, Pretence


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of four rows and an ensemble of two of them."""
    path = tmp_path / "world.yaml"
    path.write_text(STUDY)
    return read_study(path)


def progress_of(study: Study, tmp_path: Path, only: list[str] | None = None) -> Progress:
    path = tmp_path / "results/study-world.json"
    return Progress(study, tmp_path / "runs", path, read_records(path), only or [])


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
    noisy = choose(measured, {"reverse_kl": -2, "truth_logp": 1}, {"3e-05": {"reverse_kl": 1.5, "truth_logp": 4.0}})
    assert noisy["errors"] == {"3e-05": 5.0}
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
    assert records.sets["set negatives"] == {"groups": 30, "sampled": {"an": 60, "rn": 45, "mn": 18}}
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


def test_a_step_that_runs_is_left_though_its_last_file_is_there(tmp_path: Path, study: Study) -> None:
    progress = progress_of(study, tmp_path)
    first, *_ = progress.steps()
    first.done.parent.mkdir(parents=True)
    first.done.touch()
    assert first.name in [step.name for step in progress.steps([first.name])]
    assert first.name not in [step.name for step in progress.steps()]


def test_no_step_is_begun_after_the_time_is_up(tmp_path: Path, study: Study) -> None:
    runner = Pretence()
    left = progress_of(study, tmp_path).run(runner, until=0.0)
    assert runner.ran == []
    assert [step.name for step in left][:2] == ["blank reference", "reference reference"]


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
    assert "    40 s  train bn 0.01 0" in lines
    assert lines.count("    40 s  train bn 0.001 1") == 1
    assert "       ?  evaluate both mle 1" in lines
    # mle 4 x 20 s and bn 4 x 40 s, again 2 x 30 s: 300 s on two cores; the other 21 steps were never timed.
    assert lines[-1] == "31 steps left, 2 min on 2 cores; on top, 21 steps of a kind that was never timed."


# --- records and page


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = Records(comparisons=[compared("an", "mle", 0, value=2.0, theirs=2.5, error=0.1)])
    made.choices["an"] = choose({"0.1": {"x": 1.0}, "0.2": {"x": 2.0}}, {"x": 1})
    made.write(tmp_path / "records.json")
    assert read_records(tmp_path / "records.json") == made
    (tmp_path / "records.json").write_text('{"choices": {}}')
    with pytest.raises(UserError, match=r"records.json' is damaged: .*Take it from git again"):
        read_records(tmp_path / "records.json")


def test_comparisons_of_a_model_that_was_trained_again_are_left_out_and_asked_for_again(study: Study) -> None:
    first = compared("bn", "mle", 0, value=2.0, theirs=2.5, error=0.1)
    other_seed = compared("bn", "mle", 1, value=2.0, theirs=2.5, error=0.1)
    again = replace(first, against="reference", weights={"bn": "other", "reference": "reference"})
    records = Records(comparisons=[first, other_seed])
    assert records.newest == [first, other_seed]
    assert records.has("bn", "mle", 0)
    records.comparisons.append(again)
    assert records.newest == [other_seed, again]
    assert not records.has("bn", "mle", 0)
    assert "1 comparison of models that were trained again since are left out." in markdown(study, records)


def test_the_page_shows_what_counts(tmp_path: Path, study: Study) -> None:
    progress_of(study, tmp_path).run(Pretence())
    page = markdown(study, read_records(tmp_path / "results/study-world.json"))
    assert "`make study TASK=world`" in page
    # Two seeds that are alike: the error is that of the prompts, 0.2 of a row and 0.1 of a difference.
    assert "| bn | 2 | -1.50 ± 0.20 | **+0.50 ± 0.10** |" in page
    assert "| mle | 2 | -2.00 ± 0.20 |  |" in page
    assert "| bn | reference | 2 | **+2.50 ± 0.10** |" in page
    assert "| bn | 0.001 |  | 0.0001: -3.000, 0.001: -2.000 ± 0.100, 0.01: -9.000 ± 0.100 |" in page
    assert "| (bn - mle) - (reference - mle) | **+2.50 ± 0.14** |" in page
    assert "| again | 2 | 1,000 | 6 s |" in page
    assert "| negatives | 30 | an 2, mn 1, rn 2 |" in page
    assert "Validation loss, reference reference by step: 1: 2.500, 2: 2.750; least at 1." in page


def test_a_page_of_nothing_says_so(study: Study) -> None:
    assert markdown(study, Records()).count("Nothing yet.") >= 2
