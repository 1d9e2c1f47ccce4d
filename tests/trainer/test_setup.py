"""The trainer that an objective of one's own gets, and what is logged of its terms."""

from pathlib import Path

import pytest

from tests.support.training import cli, metrics
from trainer.run import main

pytestmark = pytest.mark.seconds

SOURCE = """
from trainer.objectives.base import Objective, Term


class Margin(Objective):
    summary = "the mean margin"

    def __init__(self, name, weight):
        self.name, self.weight = name, weight

    def terms(self, policy_logps, groups, options):
        return {"margin": Term((policy_logps[:, 1:].mean(-1) - policy_logps[:, 0]).sum(), weight=self.weight)}


class Pairs(Objective):
    name = "pairs-without-a-trainer"
    summary = "pairs that nobody trains on"
    needs = "pairs"


WHOLE, QUARTER, PAIRS = Margin("whole-margin", 1.0), Margin("quarter-margin", 0.25), Pairs()
"""


@pytest.fixture
def margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module's name; it is found."""
    (tmp_path / "margins_for_the_setup.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "margins_for_the_setup"


def test_an_objective_for_pairs_that_brings_no_trainer_is_refused_in_one_line(
    margins: str, reference: Path, negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(cli(reference, negative_set, tmp_path / "out", "--objective", f"{margins}:PAIRS")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: objective 'pairs-without-a-trainer' needs pairs but brings no trainer for them. Return one from its "
        "`own_trainer`, or let it need groups."
    )
    assert not (tmp_path / "out" / "trainer_job.json").exists()


@pytest.mark.parametrize(("entry", "weight"), [("WHOLE", 1.0), ("QUARTER", 0.25)])
def test_a_single_term_is_logged_beside_the_loss_where_its_weight_is_not_1(
    entry: str, weight: float, margins: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    more = ["--max_steps", "1", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    assert main(cli(reference, negative_set, tmp_path / "out", "--objective", f"{margins}:{entry}", *more)) == 0
    (line,) = (line for line in metrics(tmp_path / "out") if "loss" in line)
    assert line["loss"] != 0
    if weight == 1:
        assert "loss/margin" not in line
    else:
        assert line["loss"] == pytest.approx(weight * line["loss/margin"], rel=1e-5)
