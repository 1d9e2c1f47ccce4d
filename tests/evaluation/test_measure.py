"""From answers to measurements, on answers made by hand: what is counted, of which prompts, against whom."""

import math

import numpy as np
import pytest

from data.schema import Group
from data.sources import facts
from data.sources.tasks import dolly
from evaluation.answers.generations import GenerationSet
from evaluation.judging.chat_judge import FILTERED, REFUSAL, SAME, UNPARSED, Comparison, Outcome
from evaluation.measure import Answers, judge_all, measure
from evaluation.metrics.likelihood import Likelihoods
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.run import notes
from negatives_gen.models.engine import Sample

EXAMPLES = facts.examples()[:4]
GROUPS = [Group(f"g{i}", e["prompt"], e["completion"], [1], [2, 0], query=e["prompt"]) for i, e in enumerate(EXAMPLES)]
RIGHT = [e["completion"] for e in EXAMPLES]
WRONG = " I do not know."
DECODINGS = ("greedy", "sample")


def answers(model: str, texts: list[str], decoding: str = "greedy", asked: bool = True) -> Answers:
    samples = [Sample([1, 2], text, "stop", -2.0, None) for text in texts]
    return Answers(model, decoding, GROUPS, GenerationSet({}, model, [g.id for g in GROUPS], samples, 0.0, True), asked)


def found(measurements: list[Measurement], model: str, against: str = "") -> dict[str, Estimate]:
    return {m.metric: m.estimate for m in measurements if (m.model, m.against) == (model, against)}


class ShortestJudgeStub:
    """Prefers the shorter text; cannot decide on the first prompt."""

    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def judge(self, comparisons: list[Comparison]) -> list[Outcome]:
        self.asked += comparisons
        return [
            Outcome(None, verdicts=("?", "A"), reason="the verdict cannot be parsed")
            if c.id == "g0"
            else Outcome(float(len(c.answer) < len(c.other)), verdicts=("A", "B"))
            for c in comparisons
        ]


def test_values_by_prompt_are_of_the_kept_prompts_and_paired_with_the_baseline() -> None:
    base, other = answers("base", [RIGHT[0], WRONG, WRONG, WRONG]), answers("other", [WRONG, RIGHT[1], RIGHT[2], WRONG])
    base.similarity, other.similarity = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.4, 0.3, 0.4])
    measured = measure([base, other], ["correct", "similarity"], [1, 2, 3], baseline="base")
    assert found(measured, "base")["correct"].mean == 0
    assert set(found(measured, "base")) == {"correct", "similarity"}
    assert found(measured, "other")["correct"].mean == pytest.approx(2 / 3)
    assert found(measured, "other")["correct_difference"].mean == pytest.approx(2 / 3)
    assert found(measured, "other")["similarity_difference"].mean == pytest.approx(0.2 / 3)
    assert {m.estimate.n for m in measured} == {3}


def test_reverse_kl_is_of_samples_and_nll_of_what_was_asked_for() -> None:
    greedy, sample = answers("a", RIGHT), answers("a", RIGHT, "sample", asked=False)
    for some in (greedy, sample):
        some.second = Likelihoods("ids", [-3.0, -4.0, -5.0, None], [2, 2, 2, 0], ["", "", "", "no tokens"])
    measured = measure([greedy, sample], ["reverse_kl", "nll", "text"], range(4))
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
    """The other model's are 2 nats more on each prompt that both have; what differs between prompts cancels."""
    every = [answers(model, RIGHT, decoding, asked=decoding != "sample") for model in "ab" for decoding in DECODINGS]
    for some, logps in zip(every, [[-3.0, -9.0, -5.0, None]] * 2 + [[-5.0, -11.0, None, -7.0]] * 2, strict=True):
        some.second = Likelihoods("ids", logps, [2] * 4, [""] * 4)
    measured = measure(every, ["reverse_kl", "nll"], range(4), baseline="a")
    differences = {m.metric: (m.model, m.decoding, m.estimate) for m in measured if "difference" in m.metric}
    assert differences.keys() == {"reverse_kl_difference", "nll_difference"}
    for metric, decoding, expected in (("reverse_kl", "sample", 2.0), ("nll", "greedy", 1.0)):
        model, by, estimate = differences[f"{metric}_difference"]
        assert (model, by, estimate.n) == ("b", decoding, 2)
        assert estimate.mean == pytest.approx(expected)


def test_each_model_is_judged_against_each_opponent_but_itself() -> None:
    long, short = answers("long", [text + " Indeed." for text in RIGHT]), answers("short", [" No."] * 4)
    judge = ShortestJudgeStub()
    every = [long, short, answers("long", RIGHT, "sample", asked=False)]
    judge_all(every, ["truth", "short"], judge)  # type: ignore[arg-type]  # a stub
    assert len(judge.asked) == 12
    asked = EXAMPLES[0]["prompt"]
    assert judge.asked[0] == Comparison("g0", asked, RIGHT[0] + " Indeed.", RIGHT[0], asked)
    measured = measure([long, short], [], range(4), baseline="long")
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
    assert notes([long, short], [], [1, 2, 3]) == []  # none of the first prompt
    assert notes([long], [], range(4))[0] == (
        "1 of 4 greedy answers of long against the ground truth are in no win rate: the verdict cannot be parsed."
    )


def test_a_refused_question_is_not_judged_and_no_verdict_that_cannot_be_read() -> None:
    asked = answers("a", RIGHT)
    reasons = [f"{REFUSAL}: too long", f'{UNPARSED}: "Hm"', FILTERED]
    asked.outcomes["truth"] = [Outcome(1.0, verdicts=("A", "B")), *(Outcome(None, reason=reason) for reason in reasons)]
    rates = found(measure([asked], [], range(4)), "a", "truth")
    assert (rates["wins"].mean, rates["unparsed"].mean, rates["not_judged"].mean) == (1, 2, 3)


@pytest.mark.parametrize(
    "outcome",
    [Outcome(1.0, verdicts=("A",)), Outcome(1.0), SAME],
    ids=["a single order", "a reward model", "equal texts"],
)
def test_without_verdicts_in_both_orders_no_flips_are_told_of(outcome: Outcome) -> None:
    asked = answers("a", RIGHT)
    asked.outcomes["truth"] = [outcome] * 4
    rates = found(measure([asked], [], range(4)), "a", "truth")
    assert {"win_rate", "wins", "ties", "losses", "unparsed", "not_judged"} <= set(rates)
    assert not {"flips", "flip_rate"} & set(rates)


def test_all_wrong_or_all_at_the_limit_is_a_share_with_its_exact_interval() -> None:
    asked = answers("a", [WRONG] * 4)
    asked.similarity = np.full(4, 0.5)
    measured = found(measure([asked], ["correct", "text"], range(4)), "a")
    at_most = pytest.approx(1 - 0.025 ** (1 / 4))
    for metric in ("correct", "hit_limit", "empty", "loops"):
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
    made = Answers("m", "greedy", groups, GenerationSet({}, "m", ["d", "c"], samples, 0.0, True))
    judge = ShortestJudgeStub()
    judge_all([made], ["truth"], judge)  # type: ignore[arg-type]  # a stub
    assert judge.asked == [
        Comparison("d", "Who?\n\nAda did.", "Bob.", "Ada.", prompt),
        Comparison("c", "Who?", "Bob.", "Ada.", "<|user|>Who?", chat),
    ]


def test_mauve_is_of_the_kept_prompts_texts() -> None:
    seen = []

    def mauve(groups: list[Group], texts: list[str]) -> Estimate:
        seen.append(([g.id for g in groups], texts))
        return Estimate(0.5, 0.1, len(texts))

    measured = measure([answers("a", RIGHT)], ["mauve"], [0, 2], mauve=mauve)  # type: ignore[arg-type]  # lists
    assert seen == [(["g0", "g2"], [RIGHT[0], RIGHT[2]])]
    assert found(measured, "a")["mauve"].n == 2
