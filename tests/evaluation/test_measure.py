"""Measurements from answers, on answers made by hand: what is counted, of which prompts, against whom."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from data.command.errors import UserError
from data.schema import Group
from data.sources import enquiries, facts
from data.sources.tasks import dolly
from evaluation.answers.answer_sets import AnswerSet
from evaluation.answers.cache import Store
from evaluation.answers.generations import GenerationSet
from evaluation.judging.base import FILTERED, REFUSAL, SAME, UNPARSED, Comparison, Outcome
from evaluation.measure import Gathered, gather
from evaluation.metrics import METRICS
from evaluation.metrics.base import SPENT, Mark, Metric, PromptEvidence, SetEvidence, SetMetric
from evaluation.metrics.likelihood import Likelihoods
from evaluation.metrics.nll import NLL
from evaluation.metrics.pmi import PMI
from evaluation.metrics.reverse_kl import ReverseKL
from evaluation.metrics.second_model import SecondModelMetric
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.metrics.win_rate import Outcomes, WinRate, compare_answers
from evaluation.samples import sample_rows
from evaluation.subject import Evaluation, Part
from negatives_gen.models.engine import Sample

EXAMPLES = facts.examples()[:4]
GROUPS = [Group(f"g{i}", e["prompt"], e["completion"], [1], [2, 0], query=e["prompt"]) for i, e in enumerate(EXAMPLES)]
RIGHT = [e["completion"] for e in EXAMPLES]
WRONG = " I do not know."
DECODINGS = ("greedy", "sample")


def answers(model: str, texts: list[str], decoding: str = "greedy", asked: bool = True) -> AnswerSet:
    samples = [Sample([1, 2], text, "stop", -2.0, None) for text in texts]
    generations = GenerationSet({}, model, [g.id for g in GROUPS], samples)
    return AnswerSet(model, decoding, GROUPS, generations, asked)


def evaluation(parts: Sequence[Part] = ()) -> Evaluation:
    """One of the facts."""
    test, *others = parts or [part(range(4))]
    validation = others[0] if others else None
    return Evaluation(
        "facts", {"task": "prompt-completion"}, "all", 4, "", (), None, (), test, validation, 0, Store("nowhere")
    )  # fmt: skip


def part(prompts: Sequence[int], name: str = "test") -> Part:
    return Part(name, prompts)


def made(name: str, options: Any = None) -> Any:
    """A metric of that name, of the facts."""
    return METRICS.load(name)(options, evaluation())


def measured_by(
    metrics: Sequence[Metric], answer_sets: Sequence[AnswerSet], prompts: Sequence[int], baseline: str = ""
) -> list[Measurement]:
    return gather(metrics, [], answer_sets).measurements(part(prompts), baseline)


def of_likelihoods(
    metric: type[SecondModelMetric], answer_sets: Sequence[AnswerSet], logps: Sequence[list[float | None]]
) -> PromptEvidence:
    """A metric's evidence where a second model gave these log-probabilities of answers of two tokens."""
    values = {
        (a.model, a.decoding): metric.of_likelihoods(a, Likelihoods("ids", logp, [2] * 4, [""] * 4))
        for a, logp in zip(answer_sets, logps, strict=True)
        if metric.is_of(a)
    }
    return PromptEvidence(metric.columns, values)


def by_second_model(
    answer_sets: Sequence[AnswerSet], logps: Sequence[list[float | None]], baseline: str = ""
) -> list[Measurement]:
    evidence = [of_likelihoods(metric, answer_sets, logps) for metric in (ReverseKL, NLL)]
    return Gathered(tuple(answer_sets), (), tuple(evidence)).measurements(part(range(4)), baseline)


def found(measurements: list[Measurement], model: str, against: str = "") -> dict[str, Estimate]:
    return {m.metric: m.estimate for m in measurements if (m.model, m.against) == (model, against)}


class ShortestJudgeStub:
    """Prefers the shorter text; cannot decide on the first prompt."""

    members: Sequence[str] = ()

    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def spent(self) -> dict[str, Any]:
        return {}

    def drop(self) -> None:
        pass

    def look_at(self, prompts: Sequence[Any]) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        return {}

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        self.asked += comparisons
        return [
            Outcome(None, verdicts=("?", "A"), reason="the verdict cannot be parsed")
            if c.id == "g0"
            else Outcome(float(len(c.answer) < len(c.other)), verdicts=("A", "B"))
            for c in comparisons
        ]


class LettersMetric(SetMetric):
    """How many letters the answers have together."""

    name = "letters"
    columns = METRICS.load("similarity").columns

    def estimates(self, answers: AnswerSet, prompts: Sequence[int]) -> Mapping[str, Estimate]:
        return {"letters": Estimate(float(sum(len(answers.texts[i]) for i in prompts)), math.nan, len(prompts))}


def test_values_by_prompt_are_of_the_kept_prompts_and_paired_with_the_baseline() -> None:
    base, other = answers("base", [RIGHT[0], WRONG, WRONG, WRONG]), answers("other", [WRONG, RIGHT[1], RIGHT[2], WRONG])
    similarity = {
        ("base", "greedy"): {"similarity": [0.1, 0.2, 0.3, 0.4]},
        ("other", "greedy"): {"similarity": [0.2, 0.4, 0.3, 0.4]},
    }
    evidence = (
        made("correct").gather([base, other]),
        PromptEvidence(METRICS.load("similarity").columns, similarity),
    )
    measured = Gathered((base, other), (), evidence).measurements(part([1, 2, 3]), "base")
    assert found(measured, "base")["correct"].mean == 0
    assert set(found(measured, "base")) == {"correct", "similarity"}
    assert found(measured, "other")["correct"].mean == pytest.approx(2 / 3)
    assert found(measured, "other")["correct_difference"].mean == pytest.approx(2 / 3)
    assert found(measured, "other")["similarity_difference"].mean == pytest.approx(0.2 / 3)
    assert {m.estimate.n for m in measured} == {3}
    # All of one answer set stands together.
    assert [m.model for m in measured] == ["base"] * 2 + ["other"] * 4


def test_reverse_kl_is_of_samples_and_nll_of_what_was_asked_for() -> None:
    greedy, sample = answers("a", RIGHT), answers("a", RIGHT, "sample", asked=False)
    measured = by_second_model([greedy, sample], [[-3.0, -4.0, -5.0, None]] * 2)
    measured += measured_by([made("text")], [greedy, sample], range(4))
    kinds = {(m.metric, m.decoding): m.estimate for m in measured if m.metric in ("reverse_kl", "nll")}
    # log Q is -2 each: (1 + 2 + 3) / 3; -log P / |y|: (1.5 + 2 + 2.5) / 3.
    assert kinds["reverse_kl", "sample"].mean == pytest.approx(2)
    assert kinds["nll", "greedy"].mean == pytest.approx(2)
    assert set(kinds) == {("reverse_kl", "sample"), ("nll", "greedy")}
    assert not [m for m in measured if m.decoding == "sample" and m.metric != "reverse_kl"]
    # Differences 1, 2, 3 have the standard error sqrt(1 / 3); the prompt without a score counts nowhere.
    assert kinds["reverse_kl", "sample"].standard_error == pytest.approx(3**-0.5)
    assert kinds["reverse_kl", "sample"].n == 3


def test_reverse_kl_and_nll_are_paired_with_the_baseline() -> None:
    """One model's values are 2 nats more on each prompt that both have; what differs between prompts cancels."""
    answer_sets = [answers(model, RIGHT, d, asked=d != "sample") for model in "ab" for d in DECODINGS]
    logps: list[list[float | None]] = [[-3.0, -9.0, -5.0, None]] * 2 + [[-5.0, -11.0, None, -7.0]] * 2
    measured = by_second_model(answer_sets, logps, baseline="a")
    differences = {m.metric: (m.model, m.decoding, m.estimate) for m in measured if "difference" in m.metric}
    assert differences.keys() == {"reverse_kl_difference", "nll_difference"}
    for metric, decoding, expected in (("reverse_kl", "sample", 2.0), ("nll", "greedy", 1.0)):
        model, by, estimate = differences[f"{metric}_difference"]
        assert (model, by, estimate.n) == ("b", decoding, 2)
        assert estimate.mean == pytest.approx(expected)


def test_any_two_models_are_paired_by_what_says_which_way_is_better() -> None:
    answer_sets = [answers(model, RIGHT, d, asked=d != "sample") for model in "abc" for d in DECODINGS]
    logps: list[list[float | None]] = [[-3.0, -9.0, None, None]] * 2 + [[-5.0, -11.0, None, -7.0]] * 4
    measured = [of_likelihoods(metric, answer_sets, logps) for metric in (ReverseKL, NLL)]
    found = [d for evidence in measured for d in evidence.paired(part(range(4)))]
    assert [(d.metric, d.decoding, d.model, d.other, d.estimate.mean, d.estimate.n) for d in found] == [
        ("reverse_kl", "sample", "b", "a", 2.0, 2), ("reverse_kl", "sample", "c", "a", 2.0, 2),
        ("reverse_kl", "sample", "c", "b", 0.0, 3), ("nll", "greedy", "b", "a", 1.0, 2),
        ("nll", "greedy", "c", "a", 1.0, 2), ("nll", "greedy", "c", "b", 0.0, 3),
    ]  # fmt: skip
    assert all(math.isnan(d.estimate.standard_error) for d in found)  # equal on each prompt
    (half,) = (d for d in measured[0].paired(part([3])) if d.model == "c")
    assert (half.other, half.estimate.n) == ("b", 1)


def test_pmi_is_what_the_prompt_adds_per_token_and_of_the_answer() -> None:
    given: list[float | None] = [-3.0, -4.0, None, -5.0]
    alone: list[float | None] = [-9.0, -3.0, -6.0, None]
    likelihoods = Likelihoods("ids", given, [2, 4, 3, 5], ["", "", "no tokens", ""], alone)
    assert PMI.of_likelihoods(answers("a", RIGHT), likelihoods) == {
        "pmi": [3.0, -0.25, None, None],
        "pmi_of_answer": [6.0, -1.0, None, None],
    }


def test_each_model_is_judged_against_each_opponent_but_itself() -> None:
    long, short = answers("long", [text + " Indeed." for text in RIGHT]), answers("short", [" No."] * 4)
    judge = ShortestJudgeStub()
    outcomes = compare_answers(judge, [long, short], ["truth", "short"])
    gathered = Gathered((long, short), (), (outcomes,))
    assert len(judge.asked) == 12
    asked = EXAMPLES[0]["prompt"]
    assert judge.asked[0] == Comparison("g0", asked, RIGHT[0] + " Indeed.", RIGHT[0], asked)
    # Not of answers that nobody asked for.
    assert [WinRate.is_of(a) for a in (long, answers("long", RIGHT, "sample", asked=False))] == [True, False]
    measured = gathered.measurements(part(range(4)), "long")
    for model, rate in (("long", 0.0), ("short", 1.0)):
        rates = found(measured, model, "truth")
        assert rates["win_rate"].mean == rate
        assert rates["win_rate"].n == 3
        assert (rates["not_judged"].mean, rates["unparsed"].mean, rates["ties"].mean) == (1, 1, 0)
        assert math.isnan(rates["wins"].standard_error)
        assert (rates["flips"].mean, rates["flip_rate"].mean, rates["flip_rate"].n) == (0, 0, 3)
    assert found(measured, "short", "truth")["win_rate_difference"].mean == 1.0
    assert "win_rate_difference" not in found(measured, "long", "truth")
    assert found(measured, "long", "short")["win_rate"].mean == 0.0
    assert found(measured, "short", "short") == {}
    # By prompt, and only of those that both are judged against.
    (difference,) = gathered.paired(part(range(4)))
    assert (difference.model, difference.other, difference.against) == ("short", "long", "truth")
    assert (difference.estimate.mean, difference.estimate.n) == (1.0, 3)
    assert gathered.notes(part([1, 2, 3])) == []  # none of the first prompt
    assert gathered.notes(part(range(4)))[0] == (
        "1 of 4 greedy answers of long against the ground truth are in no win rate: the verdict cannot be parsed."
    )


def outcomes_of(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Measured where a judge gave these outcomes of four answers against the ground truths."""
    evidence = Outcomes({("a", "greedy"): {"truth": outcomes}}, {("a", "greedy"): {"truth": [0, 1, -1, 2]}}, {})
    return found(evidence.measurements(part(range(4))), "a", "truth")


def test_a_refused_question_is_not_judged_and_no_verdict_that_cannot_be_read() -> None:
    reasons = [f"{REFUSAL}: too long", f'{UNPARSED}: "Hm"', FILTERED]
    rates = outcomes_of([Outcome(1.0, verdicts=("A", "B")), *(Outcome(None, reason=reason) for reason in reasons)])
    assert (rates["wins"].mean, rates["unparsed"].mean, rates["not_judged"].mean) == (1, 2, 3)


@pytest.mark.parametrize(
    "outcome",
    [Outcome(1.0, verdicts=("A",)), Outcome(1.0), SAME],
    ids=["a single order", "a reward model", "equal texts"],
)
def test_without_verdicts_in_both_orders_no_flips_are_told_of(outcome: Outcome) -> None:
    rates = outcomes_of([outcome] * 4)
    assert {"win_rate", "wins", "ties", "losses", "unparsed", "not_judged"} <= set(rates)
    assert not {"flips", "flip_rate"} & set(rates)


def test_ties_that_nobody_was_asked_about_are_told_of() -> None:
    asked, unjudged = Outcome(1.0, verdicts=("A",)), Outcome(None, verdicts=("?",), reason="no")
    outcomes = {"truth": [SAME, asked, SAME, unjudged], "mle": [asked, asked, asked, SAME], "cpo": [asked] * 4}
    evidence = Outcomes({("anr", "greedy"): outcomes}, {}, {})
    assert evidence.notes(part(range(4))) == [
        "2 of 4 greedy answers of anr are the same as the ground truth: each counts as a tie, and the judge was not "
        "asked.",
        "1 of 4 greedy answers of anr against the ground truth are in no win rate: no.",
        "1 of 4 greedy answers of anr are the same as those of mle: each counts as a tie, and the judge was not asked.",
    ]


def test_all_wrong_or_all_at_the_limit_is_a_share_with_its_exact_interval() -> None:
    asked = answers("a", [WRONG] * 4)
    same = PromptEvidence(METRICS.load("similarity").columns, {("a", "greedy"): {"similarity": [0.5] * 4}})
    gathered = Gathered((asked,), (), (made("correct").gather([asked]), made("text").gather([asked]), same))
    measured = found(gathered.measurements(part(range(4)), ""), "a")
    at_most = pytest.approx(1 - 0.025 ** (1 / 4))
    for metric in ("correct", "hit_limit", "early_ends", "empty", "loops"):
        assert (measured[metric].mean, measured[metric].interval) == (0, (0, at_most)), metric
    for metric in ("answer_tokens", "similarity"):  # no shares
        assert measured[metric].interval is None
    assert all(math.isnan(measured[m].standard_error) for m in ("correct", "hit_limit", "answer_tokens", "similarity"))


def test_a_judge_gets_the_question_the_prompt_and_the_messages() -> None:
    prompt, response = dolly({"instruction": "Who?", "context": "Ada did.", "response": "Ada."})
    chat = [{"role": "user", "content": "Who?"}]
    groups = [
        Group("d", prompt, response, [1], [2, 0], query="Who?\n\nAda did."),
        Group("c", "<|user|>Who?", "Ada.", [1], [2, 0], messages=chat, query="Who?"),
    ]
    samples = [Sample([1, 2], "Bob.", "stop", -2.0, None)] * 2
    asked = AnswerSet("m", "greedy", groups, GenerationSet({}, "m", ["d", "c"], samples))
    judge = ShortestJudgeStub()
    compare_answers(judge, [asked], ["truth"])
    assert judge.asked == [
        Comparison("d", "Who?\n\nAda did.", "Bob.", "Ada.", prompt),
        Comparison("c", "Who?", "Bob.", "Ada.", "<|user|>Who?", chat),
    ]


def test_a_metric_of_a_set_is_of_each_part_of_the_prompts() -> None:
    parts = [part([0, 2]), part([1], "validation")]
    metric = LettersMetric(None, evaluation(parts=parts))
    gathered = gather([metric], [], [answers("a", ["one", "three", "seven", "x"])])
    assert [found(gathered.measurements(p, ""), "a")["letters"].mean for p in parts] == [8.0, 5.0]


@dataclass(frozen=True)
class Paid(SetEvidence):
    """Evidence that took something."""

    def spent(self) -> dict[str, Any]:
        return {"letters": 3}


class PaidMetric(LettersMetric):
    """A metric that says what it took."""

    record_schema: ClassVar = {"letters_spent": {"type": "integer"}}

    def gather(self, answer_sets: Sequence[AnswerSet]) -> Paid:
        return Paid({})


def test_what_evidence_took_is_recorded_under_a_key_that_says_so_and_is_the_metrics_own() -> None:
    assert gather([PaidMetric(None, evaluation())], [], []).spent() == {f"letters{SPENT}": 3} == {"letters_spent": 3}

    class Unnamed(PaidMetric):
        record_schema: ClassVar = {}

    with pytest.raises(UserError, match=r"metric 'letters' adds 'letters_spent' to the record\. Name it"):
        gather([Unnamed(None, evaluation())], [], [])


def test_marks_and_outcome_stand_beside_an_answer_once_for_each_opponent() -> None:
    asked = answers("a", [RIGHT[0], WRONG, WRONG, WRONG])
    outcomes = {"truth": [SAME] * 4, "b": [Outcome(1.0, verdicts=("A", "B"))] * 4}
    evidence = (made("correct").gather([asked]), Outcomes({("a", "greedy"): outcomes}, {}, {}))
    (row,) = sample_rows(Gathered((asked,), (), evidence), part([0]))
    assert [(a.marks, a.against, a.outcome) for a in row.answers] == [
        ((Mark("correct", "good"),), "truth", SAME),
        ((Mark("correct", "good"),), "b", Outcome(1.0, verdicts=("A", "B"))),
    ]


def test_evasive_replies_are_counted_and_marked_beside_wrong_and_correct_ones() -> None:
    base, other = answers("base", [enquiries.EVASIVE[0]] * 3 + [WRONG]), answers("other", [*RIGHT[:3], WRONG])
    evidence = [made(name).gather([base, other]) for name in ("correct", "evasive")]
    measured = Gathered((base, other), (), tuple(evidence)).measurements(part(range(4)), "base")
    assert found(measured, "base")["evasive"].mean == 0.75
    assert found(measured, "other")["evasive_difference"].mean == -0.75
    assert [found(measured, name)["made_up"].mean for name in ("base", "other")] == [0.25, 0.25]
    rows = sample_rows(Gathered((base, other), (), tuple(evidence)), part(range(4)))
    labels = [{a.model: [mark.label for mark in a.marks] for a in row.answers} for row in rows]
    assert labels[0] == {"base": ["wrong", "evasive"], "other": ["correct"]}
    assert labels[3] == {"base": ["wrong"], "other": ["wrong"]}
