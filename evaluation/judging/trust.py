"""How far a judge can be trusted: its agreement with people, its preference for a place and for length, its cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data.command.wording import counted
from evaluation.judging.base import Outcome
from evaluation.judging.labels import TIE, A, B, LabelledPair
from evaluation.metrics.agreement import agreement, cohens_kappa
from evaluation.metrics.columns import HIGHER, LOWER, Column, Section
from evaluation.metrics.rates import counts
from evaluation.metrics.statistics import Estimate, bootstrapped_share, paired_difference

PEOPLE, PLACE, LENGTH = Section("Agreement with people", 1), Section("Preference for a place", 2), Section("Length", 3)
COST = Section("Cost", 4)
NAMES = {1.0: A, 0.5: TIE, 0.0: B}

COLUMNS = (
    Column(
        "agreement", "agreement", "{:.1%}", "share of pairs on which the judge's a, b or tie is people's", PEOPLE,
        better=HIGHER, interval=True,
    ),
    Column(
        "kappa", "kappa", "{:.2f}", "Cohen's kappa of the same labels: 1 always the same, 0 as by chance", PEOPLE,
        better=HIGHER, interval=True, counted=("pairs", "pairs that people labelled and the judge judged"),
    ),
    Column(
        "agreement_decided", "agreement, no ties", "{:.1%}", "the same share where people and judge name an answer",
        PEOPLE, better=HIGHER, interval=True, counted=("decided", "pairs on which people and judge name an answer"),
    ),
    Column("not_judged", "not judged", "{:.0f}", "pairs without an outcome, which are in no rate", PEOPLE),
    Column(
        "flip_rate", "flip rate", "{:.1%}", "share of pairs whose verdict changed with the order of the answers", PLACE,
        better=LOWER, interval=True,
    ),
    Column(
        "first_rate", "first", "{:.1%}", "of these flips: share that name what is shown first; half without a "
        "preference", PLACE, interval=True, counted=("flips", "pairs whose verdict changed"),
    ),
    Column(
        "longer", "longer wins", "{:.1%}", "of the pairs that the judge decides: share on which the longer answer wins",
        LENGTH,
    ),
    Column(
        "longer_people", "by people", "{:.1%}", "of the pairs that people decide: share on which the longer one wins",
        LENGTH,
    ),
    Column(
        "longer_gap", "judge minus people", "{:+.1%}", "difference of the two on pairs that both decide: 0 without a "
        "preference of the judge's own", LENGTH, interval=True,
        counted=("both decide", "pairs of answers of unequal length that both decide"),
    ),
    Column(
        "longer_split", "where people tie", "{:.1%}", "of the pairs that people leave open and the judge decides: "
        "share on which the longer one wins; half without a preference", LENGTH, interval=True,
        counted=("open", "pairs that people leave open and the judge decides"),
    ),
    Column(
        "longer_against", "against people", "{:.1%}", "of the pairs on which the judge names the other answer than "
        "people: share on which it names the longer one", LENGTH, interval=True,
        counted=("contrary", "pairs on which the judge contradicts people"),
    ),
    Column("verdicts", "verdicts", "{:,.0f}", "answers of the judge that are used, two for a pair", COST),
    Column("input_per_verdict", "tokens in", "{:.1f}", "input tokens of a verdict, as the server counts", COST),
    Column("output_per_verdict", "tokens out", "{:.1f}", "output tokens of a verdict, thinking among them", COST),
    Column("cost_per_verdict", "cost of a verdict", "{:.3g}", "at the prices given", COST),
    Column("cost_per_pair", "cost of a pair", "{:.3g}", "at the prices given, in all orders asked", COST),
)  # fmt: skip


def measure(
    pairs: Sequence[LabelledPair], outcomes: Sequence[Outcome], spent: Mapping[str, Any]
) -> dict[str, Estimate]:
    """The values of COLUMNS; those that there are.

    Args:
        outcomes: of the judge, in the order of the pairs.
        spent: what its verdicts took, see `ChatJudge.spent`; empty of a judge that sends no requests.
    """
    people = [pair.label for pair in pairs]
    judged = [name_of(outcome) for outcome in outcomes]
    decided = [(p, j) for p, j in zip(people, judged, strict=True) if p != TIE and j in (A, B)]
    flips = [outcome for outcome in outcomes if outcome.flipped]
    found: dict[str, Estimate | None] = {
        "agreement": agreement(people, judged),
        "kappa": cohens_kappa(people, judged),
        "agreement_decided": _share([p == j for p, j in decided]),
        "not_judged": _number(judged.count(None), len(judged)),
        "flip_rate": counts(outcomes).flip_rate,
        "first_rate": _share([outcome.verdicts[0] == "A" for outcome in flips]),
        **_length(pairs, judged),
        **_cost(spent, len(pairs)),
    }
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def confusion(pairs: Sequence[LabelledPair], outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """How many pairs of each label of people's the judge gave which one: label -> judge's label -> pairs."""
    found = Counter((pair.label, name_of(outcome)) for pair, outcome in zip(pairs, outcomes, strict=True))
    names = {A: A, B: B, TIE: TIE, None: "not judged"}
    return {label: {name: found[label, judged] for judged, name in names.items()} for label in (A, B, TIE)}


def in_words(name: str, found: Mapping[str, Estimate]) -> list[str]:
    """What the numbers say of a judge, a sentence each; of what an interval cannot tell from nothing, that."""
    said = []
    if "agreement" in found:
        n, kappa = found["agreement"].n, found.get("kappa")
        beyond = f"; kappa {kappa.mean:.2f}{_between(kappa, '{:.2f}')}" if kappa else ""
        said.append(f"{name} agrees with people on {_percent(found['agreement'])} of {counted(n, 'pair')}{beyond}.")
    if "first_rate" in found:
        first = found["first_rate"]
        side = _beside(first, 0.5)
        where = {1: "first", -1: "second"}.get(side)
        flips = f"{_percent(first)} of {counted(first.n, 'flip')} name the first"
        said.append(
            f"{name} prefers what is shown {where}: {flips}."
            if where
            else f"{name} shows no preference for a place that can be told from chance: {flips}."
        )
    if "longer_gap" in found:
        gap = found["longer_gap"]
        more = {1: "more often", -1: "less often"}.get(_beside(gap, 0.0))
        points = f"{gap.mean:+.1%}{_between(gap, '{:+.1%}')} on {counted(gap.n, 'pair')}"
        said.append(
            f"{name} lets the longer answer win {more} than people do: {points}."
            if more
            else f"{name} shows no preference for length beyond people's that can be told from chance: {points}."
        )
    return said


def name_of(outcome: Outcome) -> str | None:
    """A judge's label: "a", "b", "tie", or None where it has not judged."""
    return None if outcome.score is None else NAMES[outcome.score]


def _length(pairs: Sequence[LabelledPair], judged: Sequence[str | None]) -> dict[str, Estimate | None]:
    unequal = [(p.longer, p.label, j) for p, j in zip(pairs, judged, strict=True) if p.longer]
    by_judge = [float(j == longer) if j in (A, B) else None for longer, _, j in unequal]
    by_people = [float(label == longer) if label != TIE else None for longer, label, _ in unequal]
    return {
        "longer": _share([value for value in by_judge if value is not None]),
        "longer_people": _share([value for value in by_people if value is not None]),
        "longer_gap": paired_difference(by_judge, by_people),
        "longer_split": _share([j == longer for longer, label, j in unequal if label == TIE and j in (A, B)]),
        "longer_against": _share([j == longer for longer, label, j in unequal if {label, j} == {A, B}]),
    }


def _cost(spent: Mapping[str, Any], pairs: int) -> dict[str, Estimate | None]:
    if not spent or not spent["verdicts"]:
        return {}
    verdicts, counted = spent["verdicts"], spent["verdicts"] - spent["without_tokens"]
    found = {"verdicts": _number(verdicts, pairs)}
    if counted:
        for side in ("input", "output"):
            found[f"{side}_per_verdict"] = _number(spent[f"{side}_tokens"] / counted, counted)
        if spent["cost"] is not None:
            found["cost_per_verdict"] = _number(spent["cost"] / counted, counted)
            found["cost_per_pair"] = _number(spent["cost"] / counted * verdicts / pairs, pairs)
    return {**found}


def _share(values: Sequence[bool | float]) -> Estimate | None:
    return bootstrapped_share([float(value) for value in values]) if values else None


def _number(value: float, n: int) -> Estimate:
    return Estimate(float(value), math.nan, n)


def _beside(found: Estimate, value: float) -> int:
    """Where an interval lies beside a value: 1 above it as a whole, -1 below, 0 if it holds it or there is none."""
    low, high = found.interval or (value, value)
    return 1 if low > value else -1 if high < value else 0


def _percent(found: Estimate) -> str:
    return f"{found.mean:.1%}{_between(found, '{:.1%}')}"


def _between(found: Estimate, form: str) -> str:
    return f" ({form.format(found.interval[0])} to {form.format(found.interval[1])})" if found.interval else ""
