"""Several judges as one: the majority, caps over all of them, what they say one by one and how far they agree."""

import re
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from evaluation.judging.base import SAME, JudgeOptions, Outcome
from evaluation.judging.panel import NOBODY, majority
from evaluation.metrics.columns import in_order
from evaluation.metrics.panel_rates import panel_columns
from evaluation.metrics.win_rate import Outcomes, WinRate
from evaluation.report.results import Results
from evaluation.report.tables import tables
from evaluation.subject import Part
from tests.support.chat_server import ChatAPIStub
from tests.support.judged import judge_by, longer, unequal

pytestmark = pytest.mark.usefixtures("api_environment")

WIN, TIE, LOSS, NONE = Outcome(1.0), Outcome(0.5), Outcome(0.0), Outcome(None, reason="unread")
MODELS = ["longer", "first", "shorter"]


def by_name(request: dict[str, Any]) -> tuple[str, str]:
    """Judges that do what their names say."""
    letter = longer(request)[0]
    return {"longer": letter, "first": "A", "shorter": "AB".replace(letter, "")}[request["model"]], "stop"


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ((WIN, WIN, LOSS), 1.0), ((WIN, TIE, TIE), 0.5), ((WIN, LOSS, LOSS), 0.0), ((WIN, LOSS), 0.5),
        ((WIN, TIE, LOSS), 0.5), ((WIN, NONE, NONE), 1.0), ((TIE, WIN), 0.5), ((NONE, NONE), None),
    ],
)  # fmt: skip
def test_the_majority_decides_and_where_two_lead_it_is_a_tie(votes: tuple[Outcome, ...], score: float | None) -> None:
    found = majority([f"m{n}" for n in range(len(votes))], votes)
    assert (found.score, found.votes) == (score, votes)
    assert found.reason == NOBODY if score is None else found.reason.startswith("m0: ")


def test_answers_that_are_the_same_stay_what_nobody_was_asked_about() -> None:
    assert majority(["a", "b"], (SAME, SAME)) == SAME


def test_each_judge_is_asked_and_nothing_is_paid_twice(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = by_name
    panel = judge_by(server, tmp_path, model=MODELS)
    outcomes = panel.judge(unequal(6))
    assert [o.reason for o in outcomes[:2]] == [
        "longer: loss, first: tie, shorter: win", "longer: win, first: tie, shorter: loss"
    ]  # fmt: skip
    assert {o.score for o in outcomes} == {0.5}
    assert len(server.requests) == 3 * 2 * len(outcomes)
    assert panel.identity()["model"] == MODELS
    spent = panel.spent()
    assert spent["verdicts"] == len(server.requests)
    assert spent["judges"]["first"]["verdicts"] == 2 * len(outcomes)
    assert spent["input_tokens"] == server.bill[0]
    again = judge_by(server, tmp_path, model=[*MODELS[::-1]])
    assert [o.score for o in again.judge(unequal(6))] == [0.5] * len(outcomes)
    assert again.spent()["this_run"]["requests"] == 0
    alone = judge_by(server, tmp_path, model="longer")  # verdicts of a panel are those of its judges
    assert [o.score for o in alone.judge(unequal(6))] == [o.votes[0].score for o in outcomes]
    assert alone.spent()["this_run"]["requests"] == 0


def test_caps_hold_over_all_judges_and_a_later_run_goes_on(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = by_name
    pairs = unequal(6)  # 4 pairs, 8 questions of each judge
    with pytest.raises(UserError, match=r"--judge.max_requests 13 leaves no room .*: 13 requests"):
        judge_by(server, tmp_path, model=MODELS, max_requests=13).judge(pairs)
    assert len(server.requests) == 13
    judge_by(server, tmp_path, model=MODELS, max_requests=11).judge(pairs)
    assert len(server.requests) == 24


def test_a_cap_on_money_counts_each_judge_at_its_own_price(server: ChatAPIStub, tmp_path: Path) -> None:
    server.answer = by_name
    server.tokens = lambda request: (1000, 1)
    prices = {"input_price": [1, 10, 100], "output_price": 0}
    panel = judge_by(server, tmp_path / "free", model=MODELS, **prices)
    panel.judge(unequal(3))  # 2 pairs: 4 requests of each
    spent = panel.spent()
    assert [spent["judges"][m]["cost"] for m in MODELS] == pytest.approx([0.004, 0.04, 0.4])
    assert spent["cost"] == pytest.approx(0.444)
    capped = judge_by(server, tmp_path / "capped", model=MODELS, max_cost=0.3, **prices)
    with pytest.raises(UserError, match=r"--judge.max_cost 0.3 leaves no room"):
        capped.judge(unequal(3))
    cost = capped.spent()["this_run"]["cost"]
    assert 0.044 < cost <= 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ["a", "a"]}, "--judge.model names 'a' twice"),
        (
            {"model": ["a", "b", "c"], "input_price": [1, 2], "output_price": 1},
            "--judge.input_price lists 2 prices for 3 models",
        ),
        ({"model": "a", "input_price": [], "output_price": 1}, "--judge.input_price lists 0 prices for 1 models"),
        ({"model": ["a", "b"], "input_price": [1, -2], "output_price": 1}, "--judge.input_price must be a number, 0"),
    ],
)
def test_a_panel_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_config(JudgeOptions, **options).check()


def test_the_report_has_each_judges_rates_and_their_agreement() -> None:
    votes = [(WIN, WIN, LOSS), (WIN, WIN, WIN), (LOSS, LOSS, LOSS), (LOSS, WIN, LOSS), (WIN, WIN, NONE)]
    outcomes = [*(majority(MODELS, some) for some in votes), SAME]
    found = Outcomes(
        {("cpo", "greedy"): {"truth": outcomes}}, {("cpo", "greedy"): {"truth": [1, -1, 2, -2, 3, 0]}}, {}, MODELS
    )
    part = Part("test", list(range(6)))
    measured = {m.metric: m.estimate for m in found.measurements(part)}
    assert measured["win_rate"].mean == pytest.approx(3.5 / 6)
    assert measured["win_rate.longer"].mean == pytest.approx(3.5 / 6)
    assert measured["win_rate.first"].mean == pytest.approx(4.5 / 6)
    assert (measured["win_rate.shorter"].mean, measured["win_rate.shorter"].n) == (pytest.approx(1.5 / 5), 5)
    assert measured["judge_agreement"].mean == pytest.approx((1 / 3 + 2 + 1 / 3) / 4)
    assert measured["judge_agreement"].n == 4
    assert measured["judge_agreement.longer.first"].mean == pytest.approx(4 / 5)
    # Fleiss: observed 2/3; of 12 votes 6 are wins: chance 1/2
    assert measured["judge_kappa"].mean == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    assert (
        found.notes(part)[-1]
        == "1 of 6 greedy answers of cpo against the ground truth have no vote of shorter: unread."
    )

    columns = in_order([*WinRate.columns, *panel_columns(MODELS)])
    made = tables(Results({}, {}, found.measurements(part), columns=columns))
    assert [table.title for table in made] == [
        "Win rate against the ground truth, greedy", "Judges of the panel against the ground truth, greedy"
    ]  # fmt: skip
    assert made[1].headings == [
        "model", "longer", "first", "shorter", "longer = first", "longer = shorter", "first = shorter", "agreement",
        "kappa", "kappa, 95% interval", "by all",
    ]  # fmt: skip
