"""Which answers a judge prefers to the ground truths, or to another model's answers to the same prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from data.command.errors import UserError, did_you_mean
from data.command.options import option
from evaluation.judging.base import SAME, UNREADABLE, Comparison, Judge, JudgeOptions, Outcome
from evaluation.metrics.base import HIGHER, LOWER, TRUTH, WIN, AnswerMetric, Column, Evidence, Request, Which
from evaluation.metrics.panel_rates import panel_columns, panel_estimates, without_vote

if TYPE_CHECKING:
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.metrics.statistics import Difference, Estimate, Measurement
    from evaluation.report.results import AnswerRow
    from evaluation.subject import Evaluation, Part

RATE, LENGTH_CONTROLLED = "win_rate", "win_rate_length_controlled"
# The paper's judge, and which template it was asked with for each task.
PAPER_JUDGE = "gpt-3.5"
PAPER_TEMPLATES = {"dolly": "dolly", "continuation": "wiki"}

_COUNT = {"type": "integer", "minimum": 0}
_COST = {"type": ["number", "null"]}
SPENT_SCHEMA = {
    "description": "What the verdicts of this report took, whichever run asked for them. null without requests.",
    "type": ["object", "null"],
    "properties": {
        "verdicts": _COUNT,
        "input_tokens": _COUNT,
        "output_tokens": _COUNT,
        "without_tokens": {"description": "Verdicts whose server did not say what they took.", **_COUNT},
        "cost": {"description": "Of these tokens, at the last run's prices; null without prices.", **_COST},
        "unparsed": {"description": "Verdicts that name no answer.", **_COUNT},
        "refused": {
            "description": "Questions that the server refused in the last run; they are no verdicts.",
            **_COUNT,
        },
        "judges": {"description": "Of a panel, the same of each judge by its name.", "type": "object"},
        "base_urls": {
            "description": "The servers that gave the verdicts.",
            "type": "array",
            "items": {"type": "string"},
        },
        "this_run": {
            "description": "What the last run itself sent; cost: the most that it can have been.",
            "type": "object",
            "properties": {
                "requests": _COUNT,
                "reused": {"description": "Verdicts that were there.", **_COUNT},
                "input_tokens": _COUNT,
                "output_tokens": _COUNT,
                "cost": _COST,
            },
        },
    },
}


@dataclass(frozen=True)
class WinRateOptions:
    """Options of metric `win_rate`."""

    judge: JudgeOptions = option(JudgeOptions(), "who compares two answers; the key comes from $OPENAI_API_KEY")
    against: list[str] = option(
        [], "win rates against 'truth' or models by their names (default: truth)", metavar="NAME"
    )

    def check(self) -> None:
        """Raise UserError for options of no possible judge."""
        if self.has_judge:
            self.judge.check()

    @property
    def has_judge(self) -> bool:
        """Whether the options name a judge."""
        return bool(self.judge.model or self.judge.reward_model)

    @property
    def opponents(self) -> list[str]:
        """What win rates are against: "truth" or names of models."""
        return self.against or [TRUTH]


class WinRate(AnswerMetric):
    """Win rates by a judge: a chat model that is asked in both orders, a panel of these, or a reward model."""

    name = RATE
    summary = "share of prompts on which a judge prefers the answer"
    order = 10
    Options = WinRateOptions
    columns = (
        Column(
            RATE,
            "win rate",
            "{:.1%}",
            "share of the judged prompts on which the judge prefers the answer; a tie is half",
            WIN,
            better=HIGHER,
            share=True,
            paired=True,
            interval=True,
            counted=("judged", "prompts that the win rate is over"),
            curve=True,
            chance=0.5,
            paper="win rate",
        ),
        Column(
            LENGTH_CONTROLLED,
            "length-controlled",
            "{:.1%}",
            "win rate that answers of equal length would have, by logistic regression",
            WIN,
            better=HIGHER,
        ),
        Column("wins", "wins", "{:.0f}", "prompts on which the answer wins", WIN, better=HIGHER),
        Column("ties", "ties", "{:.0f}", "prompts on which neither wins, flips included", WIN),
        Column("losses", "losses", "{:.0f}", "prompts on which the answer loses", WIN, better=LOWER),
        Column(
            "flips", "flips", "{:.0f}", "prompts on which the verdict changed with the order of the two answers", WIN
        ),
        Column(
            "flip_rate",
            "flip rate",
            "{:.1%}",
            "flips as a share of the prompts with a verdict in both orders",
            WIN,
            share=True,
        ),
        Column("unparsed", "unparsed", "{:.0f}", "prompts with a verdict that could not be read; in no win rate", WIN),
        Column(
            "not_judged", "not judged", "{:.0f}", "prompts without an outcome, unparsed ones too; in no win rate", WIN
        ),
    )
    record_schema: ClassVar = {
        "judge": {
            "description": "What decides the verdicts; base_url is the server of the last run.",
            "type": ["object", "null"],
        },
        "against": {"type": "array", "items": {"type": "string"}},
        "judge_spent": SPENT_SCHEMA,
    }

    @classmethod
    def needs(cls, options: WinRateOptions, request: Request) -> str:
        return "" if options.has_judge else "--judge.model or .reward_model"

    @classmethod
    def unlike_paper(cls, record: Mapping[str, Any], task: str) -> list[str]:
        judge = record.get("judge")
        if not judge:
            return []
        theirs, found = PAPER_TEMPLATES.get(task), []
        model = judge.get("model") or judge.get("reward_model") or "not recorded"
        if isinstance(model, list):
            found.append(f"judge GPT-3.5 there, the majority of {', '.join(model)} here")
        elif PAPER_JUDGE not in str(model).lower():
            found.append(f"judge GPT-3.5 there, {model} here")
        template = judge.get("template", theirs)  # a reward model has neither template nor orders
        if theirs and template != theirs:
            found.append(f"the judge's template {theirs} there, {template} here")
        if judge.get("orders", "paper") != "paper":
            found.append("one order of the two answers there, both here")
        return found

    @classmethod
    def check(cls, options: WinRateOptions, request: Request) -> None:
        for other in options.opponents:
            if other != TRUTH and other not in request.models:
                raise UserError(f"--against '{other}' is no model of this run.{did_you_mean(other, request.models)}")
        if cls.name not in request.metrics:
            if options.against:
                raise UserError(
                    f"--against belongs to metric {cls.name}. Give --judge.model or --judge.reward_model too."
                )
        elif options.opponents == list(request.models):
            raise UserError(
                f"--against '{request.models[0]}' is the only model. Give another --model, or --against truth."
            )
        elif options.judge.model:
            from evaluation.judging import check_chat_judge

            check_chat_judge(options.judge)

    def __init__(self, options: WinRateOptions, evaluation: "Evaluation"):
        from evaluation.judging import make_judge

        super().__init__(options, evaluation)
        self.judge = make_judge(options.judge, evaluation.store.path)
        self.judge.look_at(evaluation.groups)

    def identity(self) -> dict[str, Any]:
        return {"judge": self.judge.identity(), "against": self.options.opponents}

    def more_columns(self) -> list[Column]:
        return panel_columns(self.judge.members)

    def drop(self) -> None:
        self.judge.drop()

    def gather(self, answer_sets: Sequence["AnswerSet"]) -> "Outcomes":
        asked = [answers for answers in answer_sets if self.is_of(answers)]
        return compare_answers(self.judge, asked, self.options.opponents)


@dataclass(frozen=True)
class Outcomes(Evidence):
    """What a judge made of the answers, of each model and decoding against each opponent.

    Attributes:
        outcomes: in the order of the prompts.
        differences: by how many characters each answer is longer than the opponent's.
        record: what the judge took.
        members: of a panel, its judges.
    """

    outcomes: Mapping[Which, Mapping[str, Sequence[Outcome]]]
    differences: Mapping[Which, Mapping[str, Sequence[int]]]
    record: Mapping[str, Any]
    members: Sequence[str] = ()

    def measurements(self, part: "Part", baseline: str = "") -> list["Measurement"]:
        from evaluation.metrics.statistics import Measurement

        return [
            Measurement(model, decoding, key, estimate, opponent)
            for (model, decoding), by_opponent in self.outcomes.items()
            for opponent in by_opponent
            for key, estimate in self._estimates((model, decoding), opponent, part, baseline).items()
        ]

    def paired(self, part: "Part") -> list["Difference"]:
        from evaluation.metrics.statistics import all_differences

        made: list[Difference] = []
        for decoding in dict.fromkeys(decoding for _, decoding in self.outcomes):
            ours = {model: found for (model, name), found in self.outcomes.items() if name == decoding}
            for opponent in dict.fromkeys(opponent for found in ours.values() for opponent in found):
                scores = {
                    model: [found[opponent][i].score for i in part.prompts]
                    for model, found in ours.items()
                    if opponent in found
                }
                made += all_differences(RATE, decoding, scores, opponent)
        return made

    def notes(self, part: "Part") -> list[str]:
        from evaluation.metrics.rates import not_judged

        said = []
        for (model, decoding), by_opponent in self.outcomes.items():
            for opponent, all_outcomes in by_opponent.items():
                outcomes = [all_outcomes[i] for i in part.prompts]
                whose = "the ground truth" if opponent == TRUTH else f"those of {opponent}"
                of_these = f"of {len(outcomes)} {decoding} answers of {model}"
                if same := outcomes.count(SAME):
                    said.append(
                        f"{same} {of_these} are the same as {whose}: each counts as a tie, and the judge was not asked."
                    )
                for reason, number in not_judged(outcomes).items():
                    said.append(f"{number} {of_these} against {whose} are in no win rate: {reason}.")
                for place, member in enumerate(self.members):
                    for reason, number in not_judged(without_vote(place, outcomes)).items():
                        said.append(f"{number} {of_these} against {whose} have no vote of {member}: {reason}.")
        return said

    def annotated(self, row: "AnswerRow", answers: "AnswerSet", index: int) -> list["AnswerRow"]:
        judged = {o: all_[index] for o, all_ in self.outcomes.get((answers.model, answers.decoding), {}).items()}
        return [replace(row, against=opponent, outcome=outcome) for opponent, outcome in judged.items()] or [row]

    def spent(self) -> dict[str, Any]:
        return dict(self.record)

    def _estimates(self, which: Which, opponent: str, part: "Part", baseline: str) -> dict[str, "Estimate"]:
        """Win rate, also at equal length and as a difference from the baseline's; wins, ties, losses, flips.

        Flips only if a pair has verdicts in both orders: else there can be none, which says nothing of the judge.
        """
        from evaluation.metrics.rates import counts, length_controlled, win_rate
        from evaluation.metrics.statistics import Estimate, paired_difference

        model, decoding = which
        outcomes = [self.outcomes[which][opponent][i] for i in part.prompts]
        scores = [outcome.score for outcome in outcomes]
        lengths = [self.differences[which][opponent][i] for i in part.prompts]
        found = {RATE: win_rate(scores), LENGTH_CONTROLLED: length_controlled(scores, lengths)}
        theirs = self.outcomes.get((baseline, decoding), {})
        if model != baseline and opponent in theirs:
            baseline_scores = [theirs[opponent][i].score for i in part.prompts]
            found[WinRate.columns[0].difference_column().key] = paired_difference(scores, baseline_scores)
        counted = counts(outcomes)
        numbers = {
            "wins": counted.wins,
            "ties": counted.ties,
            "losses": counted.losses,
            "unparsed": sum(counted.not_judged.get(reason, 0) for reason in UNREADABLE),
            "not_judged": sum(counted.not_judged.values()),
        }
        if counted.flip_rate is not None:
            numbers["flips"] = counted.flips
        found |= {name: Estimate(float(number), math.nan, len(outcomes)) for name, number in numbers.items()}
        found["flip_rate"] = counted.flip_rate
        if self.members:
            found |= panel_estimates(self.members, outcomes)
        return {name: estimate for name, estimate in found.items() if estimate is not None}


def compare_answers(judge: Judge, answer_sets: Sequence["AnswerSet"], opponents: Sequence[str]) -> Outcomes:
    """Have each model's answers compared with each opponent's, by the same decoding.

    Args:
        opponents: "truth" or names of models; no model is compared with itself.

    Raises:
        UserError: the judge cannot be asked, or its budget is spent.
    """
    from evaluation.metrics.rates import length_differences

    outcomes: dict[Which, dict[str, list[Outcome]]] = {(a.model, a.decoding): {} for a in answer_sets}
    differences: dict[Which, dict[str, list[int]]] = {(a.model, a.decoding): {} for a in answer_sets}
    for opponent in opponents:
        for answers in answer_sets:
            if answers.model != opponent:
                which, others = (answers.model, answers.decoding), _other_texts(answer_sets, answers, opponent)
                outcomes[which][opponent] = judge.judge(_comparisons(answers, others))
                differences[which][opponent] = length_differences(answers.texts, others)
    return Outcomes(outcomes, differences, {"judge": dict(judge.spent()) or None}, judge.members)


def _comparisons(answers: "AnswerSet", others: Sequence[str]) -> list[Comparison]:
    rows = zip(answers.groups, answers.texts, others, strict=True)
    return [Comparison(g.id, g.query, a, b, g.prompt, g.messages) for g, a, b in rows]


def _other_texts(answer_sets: Sequence["AnswerSet"], answers: "AnswerSet", opponent: str) -> list[str]:
    """What the answers are compared with, in the order of the prompts."""
    from evaluation.answers.answer_sets import same_decoding

    if opponent == TRUTH:
        return [group.response for group in answers.groups]
    other = same_decoding(answer_sets, answers, opponent)
    assert other is not None  # WinRate.check
    return other.texts


METRIC = WinRate
