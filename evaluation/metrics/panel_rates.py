"""What each judge of a panel says, and how far they agree: the numbers beside the panel's own."""

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from evaluation.judging.base import Outcome
from evaluation.metrics.columns import HIGHER, Column, Section

if TYPE_CHECKING:
    from evaluation.metrics.statistics import Estimate

JUDGES = Section("Judges of the panel", 11)
AGREEMENT, KAPPA = "judge_agreement", "judge_kappa"


def panel_columns(members: Sequence[str]) -> list[Column]:
    """The columns of a panel's judges; none of a judge that is alone."""
    if not members:
        return []
    rates = [
        Column(_rate(m), m, "{:.1%}", f"win rate by {m} alone", JUDGES, better=HIGHER, share=True) for m in members
    ]
    flips = [
        Column(_flips(m), f"{m} flips", "{:.1%}", f"share of pairs on which {m} changed with the order", JUDGES)
        for m in members
    ]
    pairs = [
        Column(_pair(a, b), f"{a} = {b}", "{:.1%}", "share of prompts with one outcome by both", JUDGES)
        for a, b in combinations(members, 2)
        if len(members) > 2
    ]
    return [
        *(*rates, *flips, *pairs),
        Column(AGREEMENT, "agreement", "{:.1%}", "of two judges: share of prompts with one outcome by both", JUDGES),
        Column(
            KAPPA,
            "kappa",
            "{:.2f}",
            "Fleiss' kappa of the judges' wins, ties and losses: 1 always the same, 0 as by chance",
            JUDGES,
            interval=True,
            counted=("by all", "prompts that all judges judged"),
        ),
    ]


def panel_estimates(members: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, "Estimate"]:
    """The values of `panel_columns`, of the outcomes with votes; those that there are."""
    from evaluation.metrics.agreement import agreement, fleiss_kappa, mean_agreement
    from evaluation.metrics.rates import counts, win_rate

    voted = [outcome.votes for outcome in outcomes if outcome.votes]
    scores = [[vote.score for vote in votes] for votes in voted]
    found: dict[str, Estimate | None] = {AGREEMENT: mean_agreement(scores), KAPPA: fleiss_kappa(scores)}
    for number, member in enumerate(members):
        # Pairs that nobody was asked about are ties by every judge, as by the panel.
        own = [outcome.votes[number] if outcome.votes else outcome for outcome in outcomes]
        found[_rate(member)] = win_rate([outcome.score for outcome in own])
        found[_flips(member)] = counts(own).flip_rate
    for (i, a), (j, b) in combinations(enumerate(members), 2):
        if len(members) > 2:
            found[_pair(a, b)] = agreement([of[i] for of in scores], [of[j] for of in scores])
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def without_vote(member: int, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What a judge of the panel made of the pairs that it has not judged while others have."""
    return [o.votes[member] for o in outcomes if o.score is not None and o.votes and o.votes[member].score is None]


def _rate(member: str) -> str:
    return f"win_rate.{member}"


def _flips(member: str) -> str:
    return f"flip_rate.{member}"


def _pair(a: str, b: str) -> str:
    return f"judge_agreement.{a}.{b}"
