"""The verdict of a report in words, and the differences that it and the forest plot are of."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.gaps import Gaps, bounds, distinguishable
from evaluation.judging.base import Outcome
from evaluation.metrics import as_asked as as_asked_metrics
from evaluation.metrics.base import PromptEvidence, columns_of
from evaluation.metrics.columns import as_asked
from evaluation.metrics.correct import Correct
from evaluation.metrics.statistics import ERRORS, Difference, Estimate, Measurement, all_differences
from evaluation.metrics.win_rate import Outcomes
from evaluation.report import Results
from evaluation.report.cells import in_full
from evaluation.report.forest import forest
from evaluation.report.tables import tables
from evaluation.report.verdict import verdict
from evaluation.subject import Part
from tests.support.reports import NAN, drawn, make_results, measured, rate


def correct(model: str, mean: float, error: float = 0.02, n: int = 480) -> Measurement:
    return Measurement(model, "sample", "correct", Estimate(mean, error, n))


def quickstart() -> Results:
    """The README's example: cpo over the reference, below mle."""
    found = [
        measured("cpo", "truth_logp", -2.0, ""),
        measured("cpo", "answer_tokens", 9.0, "sample"),  # neither way is better
        correct("reference", 0.785), correct("cpo", 0.856), correct("mle", 0.904), correct("tie", 0.79),
        Measurement("cpo", "sample", "correct_difference", Estimate(0.071, 0.016, 480, (0.04, 0.10))),
        Measurement("mle", "sample", "correct_difference", Estimate(0.119, 0.016, 480, (0.09, 0.15))),
        Measurement("tie", "sample", "correct_difference", Estimate(0.005, 0.010, 480, (-0.01, 0.02))),
        *(measured(model, "correct", 0.5, "greedy") for model in ("reference", "cpo")),
    ]  # fmt: skip
    below = [Difference("mle", "cpo", "sample", "correct", Estimate(0.048, 0.019, 480))]
    return replace(make_results(found, baseline="reference"), differences=below)


def test_the_verdict_says_each_model_beside_the_baseline_and_the_best_other_one() -> None:
    found = verdict(quickstart())
    assert found.lines == [
        "mle: 90.4% correct answers, +11.9 ± 1.6 over reference, +4.8 ± 1.9 over cpo.",
        "cpo: 85.6% correct answers, +7.1 ± 1.6 over reference, 4.8 ± 1.9 below mle.",
        # Of what was not paired the errors of both.
        "tie: 79.0% correct answers, not distinguishable from reference (+0.5 ± 1.0), 11.4 ± 2.8 below mle.",
    ]
    assert found.hedge == (
        "By correct answers, sample (n = 480; more is better). Each model beside reference (the baseline) and the best "
        "other model; behind ±: one standard error of the difference. Not distinguishable: less than 1.96 of these "
        "apart, or fewer than 20 prompts. One checkpoint per row: no error here holds the noise of training, which "
        "other seeds would show."
    )


def test_the_verdict_names_what_else_differs_beyond_its_error() -> None:
    """For better or worse, once each, by the decoding that leads; not what is within its error, or not paired."""
    base = make_results([correct(model, 0.5) for model in ("reference", "cpo", "mle")], baseline="reference")
    assert verdict(base).also == ()  # nothing else was paired
    more = [
        *(measured(m, "answer_tokens", 9.0, "sample") for m in ("reference", "mle", "cpo")),
        *(measured(m, "truth_logp", -2.0, "") for m in ("mle", "cpo")),
        *(measured(m, key, 0.3, "sample") for m in ("mle", "cpo") for key in ("evasive", "made_up")),
        Measurement("cpo", "", "truth_logp_difference", Estimate(-0.31, 0.05, 480)),
        Measurement("mle", "", "truth_logp_difference", Estimate(0.2, 0.05, 480)),
        Measurement("cpo", "sample", "answer_tokens_difference", Estimate(0.7, 0.1, 480)),
        Measurement("mle", "sample", "answer_tokens_difference", Estimate(0.1, 0.1, 480)),
        Measurement("mle", "greedy", "evasive_difference", Estimate(-0.5, 0.01, 480)),  # another decoding's
        Measurement("cpo", "sample", "evasive_difference", Estimate(-0.5, 0.01, 480)),
        Measurement("mle", "sample", "evasive_difference", Estimate(0.5, 0.01, 480)),
        Measurement("cpo", "sample", "made_up_difference", Estimate(0.5, 0.01, 480)),
    ]
    results = replace(base, measurements=[*base.measurements, *more])
    assert verdict(results).also == (
        "Also told apart from reference, prompt by prompt: evasive (better: cpo; worse: mle), made up (worse: cpo), "
        "answer tokens (higher: cpo), truth logp (lower: cpo; higher: mle). Some may be chance.",
    )
    alone = [m for m in results.measurements if m.metric.startswith("truth_logp")]
    found = verdict(replace(results, measurements=alone, differences=()))
    assert found.lines == []
    assert found.also[0].startswith("Told apart from reference, prompt by prompt: truth logp (lower: cpo; higher: mle)")


@pytest.mark.parametrize(
    ("greedy", "said"),
    [
        ((0.1, 0.9, 0.5), "By greedy: the same order."),
        ((0.1, 0.81, 0.82), "By greedy: the same order, but for models that are not told apart."),
        ((0.1, 0.5, 0.9), "By greedy otherwise: mle +40.0 ± 2.8 over cpo."),
        (
            (0.5, 0.5, 0.5),
            "By greedy: the same order, but for models that are not told apart; there not told apart from reference: "
            "cpo, mle.",
        ),
        ((0.1, 0.9, None), "By greedy: the same order."),  # of the models that both have
        ((0.1, 0.9, NAN), "By greedy: the same order."),
        ((None, 0.9, None), None),
    ],
)
def test_the_verdict_says_whether_other_decodings_agree(greedy: tuple[float | None, ...], said: str | None) -> None:
    """By sampling cpo is over mle, and both over the reference."""
    models = "reference", "cpo", "mle"
    found = [correct(model, mean) for model, mean in zip(models, (0.1, 0.9, 0.5), strict=True)]
    found += [
        replace(correct(model, mean), decoding="greedy")
        for model, mean in zip(models, greedy, strict=True)
        if mean is not None
    ]
    found += [replace(correct("unsampled", 0.1), decoding="greedy"), correct("unsampled", NAN)]
    found += [replace(correct("cpo", 0.1), metric="evasive", decoding="beam2")]  # another number
    assert verdict(make_results(found, baseline="reference")).also == ((said,) if said else ())


def test_the_verdict_names_what_another_decoding_alone_tells_apart() -> None:
    models = "reference", "cpo", "mle"
    found = [correct(model, mean) for model, mean in zip(models, (0.1, 0.101, 0.5), strict=True)]
    found += [replace(correct(m, mean), decoding="greedy") for m, mean in zip(models, (0.1, 0.3, 0.5), strict=True)]
    said = "By greedy: the same order; there alone told apart from reference: cpo."
    assert verdict(make_results(found, baseline="reference")).also == (said,)


def test_what_was_asked_for_first_leads_and_comes_first() -> None:
    found = [measured(m, key, v, "greedy") for key, v in (("similarity", 0.5), ("correct", 0.5)) for m in ("mle", "a")]
    found += [measured(m, "truth_logp", -1.0, "") for m in ("mle", "a")]
    for asked in (["truth", "correct", "similarity"], ["similarity", "correct", "truth"]):
        chosen = as_asked([c for metric in as_asked_metrics(asked) for c in columns_of([metric])])
        results = replace(make_results(found), columns=chosen)
        first = next(name for name in asked if name != "truth")
        assert verdict(results).hedge.startswith({"correct": "By correct", "similarity": "By similarity"}[first])
        made = tables(results)
        assert [table.title.partition(",")[0] for table in made] == (
            ["Answers", "Ground truths and held-out groups"][:: -1 if asked[0] == "truth" else 1]
        )
        headings = next(table for table in made if table.title.startswith("Answers")).headings[1:]
        assert [h.split(" ")[0] for h in headings] == [name for name in asked if name != "truth"]


def test_less_may_be_better_and_numbers_keep_their_form() -> None:
    found = verdict(make_results([measured("mle", "nll", 2.5), measured("cpo", "nll", 2.25)]))
    assert found.lines == ["cpo: NLL 2.250, 0.250 ± 0.018 below mle."]
    assert "(n = 1,000; less is better)" in found.hedge


def test_a_win_rate_against_a_model_is_held_against_chance() -> None:
    found = verdict(make_results([rate(0.55, "anr", against="mle"), rate(0.51, "an", against="mle")]))
    assert found.lines[0].startswith("anr: 55.0% win rate against mle, +5.0 ± 1.6 over 50.0%, ")
    assert found.lines[1].startswith("an: 51.0% win rate against mle, not distinguishable from 50.0% (+1.0 ± 1.6), ")


def test_a_single_model_is_compared_with_nothing() -> None:
    found = verdict(make_results([correct("mle", 0.5)]))
    assert found.lines == ["mle: 50.0% correct answers."]
    assert "There is no other model to compare with. One checkpoint per row" in found.hedge


def test_without_a_better_way_there_is_no_verdict() -> None:
    for measurements in ([], [measured("mle", "answer_tokens", 9.0)], [correct("mle", NAN)]):
        found = verdict(make_results(measurements))
        assert found.lines == []
        assert found.hedge.startswith("No verdict: ")


def test_what_a_second_model_finds_likely_leads_only_where_nothing_else_does() -> None:
    likely = [measured("mle", "nll", 2.5), measured("cpo", "nll", 2.25)]
    found = verdict(make_results([*likely, correct("mle", 0.9), correct("cpo", 0.5)]))
    assert found.hedge.startswith("By correct answers")
    assert found.lines == ["cpo: 50.0% correct answers, 40.0 ± 2.8 below mle."]
    assert verdict(make_results(likely)).hedge.startswith("By NLL")


def test_a_verdict_that_is_not_of_answers_says_so() -> None:
    ranking = [measured(m, "ranking_accuracy", v, "") for m, v in (("mle", 0.5), ("anr", 0.6))]
    assert "It is of checkpoints: nothing that was measured says which answers" in verdict(make_results(ranking)).hedge
    answers = [measured("mle", "correct", 0.5), *ranking]
    assert "It is of checkpoints" not in verdict(make_results(answers)).hedge


def test_of_many_models_the_best_are_spoken_of() -> None:
    found = verdict(make_results([correct(f"m{i}", i / 20) for i in range(12)], baseline="m0"))
    assert [line.partition(":")[0] for line in found.lines] == [
        *(f"m{i}" for i in range(11, 3, -1)),
        "3 more models are in the tables.",
    ]
    assert verdict(make_results([correct(f"m{i}", i / 20) for i in range(10)], baseline="m0")).lines[-1] == (
        "1 more model is in the tables."
    )


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (Estimate(0.2, 0.1, 100), True),
        (Estimate(-0.2, 0.1, 100), True),
        (Estimate(0.19, 0.1, 100), False),
        (Estimate(0.2, 0.1, 100, (-0.01, 0.4)), True),  # the error that is shown counts, also of an older report
        (Estimate(1.0, 0.1, 19), False),
        (Estimate(1.0, NAN, 20), True),  # all prompts alike
        (Estimate(1.0, NAN, 3), False),
        (Estimate(0.0, NAN, 100), False),
        (Estimate(NAN, NAN, 100), False),
        (None, False),
    ],
)
def test_what_is_distinguishable(gap: Estimate | None, expected: bool) -> None:
    assert distinguishable(gap) == expected


def test_differences_are_paired_by_prompt_and_read_both_ways() -> None:
    values = {"a": [0.0, 1.0, None, 0.5], "b": [1.0, 1.0, 1.0, None], "c": [None, None, 1.0, None]}
    found = all_differences("correct", "greedy", values, "truth")
    assert [(d.model, d.other, d.estimate.mean, d.estimate.n) for d in found] == [
        ("b", "a", 0.5, 2),
        ("c", "b", 0.0, 1),
    ]
    gaps = Gaps([], found)
    forward, back = (
        gaps.between(Measurement(m, "greedy", "correct", Estimate(0.0, NAN, 3), "truth"), other)
        for m, other in (("b", "a"), ("a", "b"))
    )
    assert forward
    assert back
    assert (forward.mean, back.mean, forward.standard_error) == (0.5, -0.5, back.standard_error)
    assert gaps.between(Measurement("a", "greedy", "correct", Estimate(0.0, NAN, 3)), "b") is None


def test_a_difference_from_the_baseline_has_one_error_wherever_it_is() -> None:
    """In its column, among the differences of any two, in the forest and in the verdict: of means and of win rates."""
    draw = np.random.default_rng(0)
    values = {m: draw.integers(0, 2, 200).astype(float).tolist() for m in ("mle", "cpo", "anr")}
    of_answers = PromptEvidence(Correct.columns, {(m, "greedy"): {"correct": v} for m, v in values.items()})
    judged = {(m, "greedy"): {"truth": [Outcome(score) for score in v]} for m, v in values.items()}
    lengths = {which: {"truth": [0] * 200} for which in judged}
    prompts = Part("test", range(200))
    for evidence, key in ((of_answers, "correct"), (Outcomes(judged, lengths, {}), "win_rate")):
        found, paired = evidence.measurements(prompts, "mle"), evidence.paired(prompts)
        shown = {m.model: m.estimate for m in found if m.metric == f"{key}_difference"}
        assert shown == {d.model: d.estimate for d in paired if d.other == "mle" and d.metric == key}
        assert list(shown) == ["cpo", "anr"]
        results = replace(make_results(found), differences=paired)
        for model, gap in shown.items():
            assert gap.interval == pytest.approx(bounds(gap))
            error = f"{100 * abs(gap.mean):.1f} ± {100 * gap.standard_error:.1f}"
            (said,) = (line for line in verdict(results).lines if line.startswith(f"{model}:"))
            assert error in said
            assert error in " ".join(cell.text.replace("%", "") for t in tables(results) for r in t.rows for cell in r)
        panel = next(panel for panel in forest(results) if "minus mle" in panel.alt)
        _, _, (bars,) = drawn(panel).containers[0]
        arms = {round(abs(high - low), 6) for (low, _), (high, _) in bars.get_segments()}
        assert arms == {round(200 * ERRORS * gap.standard_error, 6) for gap in shown.values()}


@pytest.mark.parametrize(
    ("mean", "error", "said", "shown"),
    [
        (0.0034, 0.0016, "+0.34 ± 0.16 over reference", "+0.34% ± 0.16"),  # "+0.3 ± 0.2" would be 1.5 errors
        (-0.0034, 0.0016, "0.34 ± 0.16 below reference", "-0.34% ± 0.16"),
        (0.0024, 0.0014, "not distinguishable from reference (+0.24 ± 0.14)", "+0.24% ± 0.14"),  # "+0.2 ± 0.1": 2
        (0.071, 0.016, "+7.1 ± 1.6 over reference", "+7.1% ± 1.6"),
        (0.004, 0.004, "not distinguishable from reference (+0.4 ± 0.4)", "+0.4% ± 0.4"),
        (0.0003, NAN, "+0.03 over reference", "+0.03%"),  # on all prompts alike
    ],
)
def test_what_is_shown_of_a_difference_agrees_with_what_is_said_of_it(
    mean: float, error: float, said: str, shown: str
) -> None:
    gap = Measurement("cpo", "sample", "correct_difference", Estimate(mean, error, 480, (mean - 1e-4, mean + 1e-4)))
    results = make_results([correct("reference", 0.5), correct("cpo", 0.5 + mean), gap], baseline="reference")
    assert verdict(results).lines[0].endswith(f", {said}.")
    (table,) = tables(results)
    column = table.headings.index("correct answers minus reference")
    assert [row[column].text for row in table.rows] == ["", shown]


@pytest.mark.parametrize("form", ["{:+.1%}", "{:+.2f}", "{:+,.0f}"])
def test_the_digits_of_a_difference_say_what_it_is(form: str) -> None:
    draw = np.random.default_rng(1)
    for z, error in zip(draw.normal(1.96, 0.3, 2000), draw.lognormal(-5, 2, 2000), strict=True):
        mean = z * error
        shown = in_full(form, mean, error)
        a, b = (float(shown.format(x).rstrip("%").replace(",", "")) for x in (mean, error))
        assert (abs(a) > ERRORS * b) == (abs(mean) > ERRORS * error)
    assert in_full("{:+.4g}", 0.1, 0.1) == "{:+.4g}"
    assert in_full(form, 1e-30, NAN) == form  # rounding of the machine's


def test_the_forest_shows_what_is_paired_with_the_baseline() -> None:
    (panel,) = forest(quickstart())
    axes = drawn(panel)
    assert axes.get_title() == "correct answers minus reference, sample"
    assert axes.get_xlabel() == "percentage points, more is better; bars: 95% interval"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cpo", "mle", "tie"]
    points, _, (bars,) = axes.containers[0]
    assert list(points.get_xdata()) == pytest.approx([7.1, 11.9, 0.5])
    assert [round(x) for x, _ in bars.get_segments()[0]] == [4, 10]
    assert panel.alt == "correct answers minus reference, of cpo, mle and tie, with 95% intervals; more is better."
    # Also where a report has no column of differences, and none without a baseline.
    ranking = [measured(m, "ranking_accuracy", v, "") for m, v in (("mle", 0.5), ("anr", 0.6))]
    paired = [Difference("anr", "mle", "", "ranking_accuracy", Estimate(0.1, 0.01, 50))]
    (panel,) = forest(replace(make_results(ranking), differences=paired))
    assert drawn(panel).get_title() == "ranking accuracy minus mle"
    assert forest(make_results(ranking)) == forest(make_results(ranking, baseline=None)) == []
