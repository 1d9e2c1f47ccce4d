"""The answer of a report in words: how each model does by what leads, beside the baseline and the best other one."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from data.command.wording import counted, is_or_are
from evaluation.gaps import FEWEST, Gaps, Ranked, distinguishable, ranked
from evaluation.metrics.base import TRUTH
from evaluation.metrics.columns import HIGHER, LOWER, NEITHER, SECOND, Column
from evaluation.metrics.statistics import ERRORS, Estimate, Measurement
from evaluation.report.cells import in_full
from evaluation.report.results import Results
from evaluation.report.tables import gaps_of, opponent, unique

MOST = 8  # models that are spoken of
OF_CHECKPOINTS = (
    "It is of checkpoints: nothing that was measured says which answers are better (--embedder, --second_model and "
    "--judge.model do)."
)
OF_ONE_TRAINING = "One checkpoint per row: no error here holds the noise of training, which other seeds would show."


@dataclass(frozen=True)
class Verdict:
    """What a report says first.

    Attributes:
        lines: a sentence per model, the best first; none where nothing says which way is better.
        also: whether the other decodings agree, and what else is told apart from the baseline; a sentence or two each.
        hedge: what the numbers are of, when a difference counts, and what no error holds.
    """

    lines: list[str]
    hedge: str
    also: tuple[str, ...] = ()


def verdict(results: Results, aside: Collection[str] = ()) -> Verdict:
    """The verdict on a report's measurements, by the first of them that says which way is better.

    What else differs beyond its error is named, also where neither way is better: a gain in what leads may be paid for
    elsewhere, and be none by another decoding. So are models without a number to lead by.

    Args:
        aside: models that are not missed, since another one stands for them.
    """
    leading = leading_numbers(results)
    also = tuple(filter(None, (*_other_decodings(results, leading), _also(results, leading[0] if leading else None))))
    if not leading:
        return Verdict([], "No verdict: nothing that was measured says which way is better.", also)
    column, first = results.column(leading[0]), leading[0]
    gaps = gaps_of(results)
    ranking = ranked(leading, gaps, higher=column.better == HIGHER)
    baseline = str(results.job.get("baseline") or "")
    told = [m for m in ranking.ordered if m.model != baseline] or list(ranking.ordered)
    lines = [_sentence(m, ranking, baseline, column, gaps) for m in told[:MOST]]
    if len(told) > MOST:
        more = len(told) - MOST
        lines.append(f"{counted(more, 'more model')} {is_or_are(more)} in the tables.")
    counts = [m.estimate.n for m in leading]
    n = f"{min(counts):,}" + (f" to {max(counts):,}" if min(counts) < max(counts) else "")
    by = f", {first.decoding}" if first.decoding else ""
    hedge = f"By {column.heading}{_against(first)}{by} (n = {n}; {column.spoken_better})."
    if not first.decoding:
        hedge += f" {OF_CHECKPOINTS}"
    spoken_of = {*aside, first.against, *(m.model for m in ranking.ordered)}
    if missed := [model for model in unique(m.model for m in results.measurements) if model not in spoken_of]:
        hedge += f" Without that number: {_few(missed)}."
    if len(ranking.ordered) == 1 and first.against in ("", TRUTH):
        return Verdict(lines, f"{hedge} There is no other model to compare with. {OF_ONE_TRAINING}")
    beside = f"{baseline} (the baseline) and the best other model" if baseline else "the best other model"
    return Verdict(
        lines,
        f"{hedge} Each model beside {beside}; behind ±: one standard error of the difference. Not distinguishable: "
        f"less than {ERRORS:.2f} of these apart, or fewer than {FEWEST} prompts. {OF_ONE_TRAINING}",
        also,
    )


def leading_numbers(results: Results) -> list[Measurement]:
    """The measurements that a verdict is by, of one decoding and one opponent; none without a better way.

    In the order of the columns, but of answers before of checkpoints; under a second model last of those of answers,
    since it may be one of the compared models, or like one, and finds likely what that one says.
    """
    place = {key: i for i, key in enumerate(results.in_order(results.measurements))}

    def rank(m: Measurement) -> tuple[bool, bool, int]:
        return not m.decoding, results.column(m).section == SECOND, place[m.metric]

    for m in sorted(results.measurements, key=rank):
        column = results.column(m)
        if column.better != NEITHER and not column.is_difference and not math.isnan(m.estimate.mean):
            of = (m.metric, m.decoding, m.against)
            return [other for other in results.measurements if (other.metric, other.decoding, other.against) == of]
    return []


def _other_decodings(results: Results, leading: list[Measurement]) -> list[str]:
    """A sentence for each decoding but the leading one: does it say the same of the models?"""
    if not leading:
        return []
    first = leading[0]
    same = [m for m in results.measurements if (m.metric, m.against) == (first.metric, first.against)]
    others = unique(m.decoding for m in same if m.decoding != first.decoding)
    return [_agreement(results, leading, [m for m in same if m.decoding == decoding]) for decoding in others]


def _agreement(results: Results, leading: list[Measurement], theirs: list[Measurement]) -> str:
    """E.g. "By greedy: the same order; there not told apart from reference: cpo."; "" of less than two common models.

    Against the order speaks only what is told apart; what differs from the baseline by one of both decodings alone is
    named.

    Args:
        theirs: the same number by another decoding.
    """
    column, gaps, baseline = results.column(leading[0]), gaps_of(results), str(results.job.get("baseline") or "")
    ours, others = (ranked(found, gaps, higher=column.better == HIGHER).ordered for found in (leading, theirs))
    common = {m.model for m in ours} & {m.model for m in others}
    if len(common) < 2:
        return ""
    ours, others = ([m for m in found if m.model in common] for found in (ours, others))
    place = {m.model: i for i, m in enumerate(ours)}
    turned = [
        f"{m.model} {_compared(gap, worse.model, column)}"
        for i, m in enumerate(others)
        for worse in others[i + 1 :]
        if place[m.model] > place[worse.model] and distinguishable(gap := gaps.between(m, worse.model))
    ]
    if turned:
        said = f"By {others[0].decoding} otherwise: {_few(turned)}"
    elif [m.model for m in others] == list(place):
        said = f"By {others[0].decoding}: the same order"
    else:
        said = f"By {others[0].decoding}: the same order, but for models that are not told apart"
    beyond, still = ([m.model for m in found if _apart(m, baseline, gaps)] for found in (ours, others))
    lost, won = ([model for model in a if model not in b] for a, b in ((beyond, still), (still, beyond)))
    if lost:
        said += f"; there not told apart from {baseline}: {_few(lost)}"
    if won:
        said += f"; there alone told apart from {baseline}: {_few(won)}"
    return said + "."


def _apart(m: Measurement, baseline: str, gaps: Gaps) -> bool:
    return m.model != baseline and distinguishable(gaps.between(m, baseline))


def _also(results: Results, lead: Measurement | None) -> str:
    """E.g. "Also told apart from reference, prompt by prompt: evasive (better: cpo), truth logp (lower: cpo)."

    Of what was paired by prompt, by the decoding that the verdict is by, or by none.
    """
    baseline, gaps = str(results.job.get("baseline") or ""), gaps_of(results)
    said = []
    for key in results.in_order(results.measurements):
        ways: dict[str, list[str]] = {"better": [], "worse": [], "lower": [], "higher": []}
        heading = ""
        for m in results.measurements:
            column = results.column(m)
            if m.metric != key or m.model == baseline or column.is_difference or not _beside(m, column, lead):
                continue
            heading, gap = column.heading, gaps.paired(m, baseline)
            if gap and distinguishable(gap) and m.model not in (way := ways[_way(gap, column)]):
                way.append(m.model)
        if found := "; ".join(f"{way}: {_few(models)}" for way, models in ways.items() if models):
            said.append(f"{heading} ({found})")
    if not said:
        return ""
    told = "Also told apart" if lead else "Told apart"
    return f"{told} from {baseline}, prompt by prompt: {', '.join(said)}. Some may be chance."


def _way(gap: Estimate, column: Column) -> str:
    if column.better == NEITHER:
        return HIGHER if gap.mean > 0 else LOWER
    return "better" if (gap.mean > 0) == (column.better == HIGHER) else "worse"


def _beside(m: Measurement, column: Column, lead: Measurement | None) -> bool:
    """Whether a verdict by what leads has something to say of a measurement too."""
    if lead is None:
        return not m.against
    same_answers = m.decoding in ("", lead.decoding) or bool(column.decoding) or not lead.decoding
    return m.metric != lead.metric and same_answers and m.against in ("", lead.against)


def _few(models: list[str]) -> str:
    more = len(models) - MOST
    return ", ".join(models[:MOST]) + (f" and {more} more" if more > 0 else "")


def _sentence(m: Measurement, ranking: Ranked, baseline: str, column: Column, gaps: Gaps) -> str:
    """E.g. "cpo: 85.6% correct answers, +7.1 ± 1.6 over reference, 4.8 ± 1.9 below mle"."""
    value = column.form.format(m.estimate.mean)
    said = [f"{value} {column.heading}" if column.percent else f"{column.heading} {value}"]
    said[0] += _against(m)
    if m.against not in ("", TRUTH) and column.chance is not None:
        chance = column.form.format(column.chance)
        said.append(_compared(_above(m.estimate, column.chance), chance, column))
    others = [other.model for other in ranking.ordered if other.model != m.model]
    beside = [name for name in (baseline, *others[:1]) if name in others]
    said += [_compared(gaps.between(m, name), name, column) for name in dict.fromkeys(beside)]
    return f"{m.model}: {', '.join(said)}."


def _compared(gap: Estimate | None, other: str, column: Column) -> str:
    if gap is None:
        return f"not compared with {other} (no error is known)"
    form = in_full(column.form, gap.mean, gap.standard_error)
    size = form.format(abs(gap.mean)).rstrip("%")
    error = "" if math.isnan(gap.standard_error) else f" ± {form.format(gap.standard_error).rstrip('%')}"
    sign = "+" if gap.mean > 0 else "-" if gap.mean < 0 else ""
    if not distinguishable(gap):
        return f"not distinguishable from {other} ({sign}{size}{error})"
    return f"+{size}{error} over {other}" if gap.mean > 0 else f"{size}{error} below {other}"


def _above(estimate: Estimate, value: float) -> Estimate:
    return replace(estimate, mean=estimate.mean - value, interval=None)


def _against(m: Measurement) -> str:
    return f" against {opponent(m.against)}" if m.against and m.against != TRUTH else ""
