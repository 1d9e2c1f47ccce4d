"""The metrics as columns: heading, format, meaning, and the table they belong to."""

import math
from dataclasses import dataclass

from evaluation.metrics.statistics import LEVEL, Estimate, Measurement

# The tables.
WIN, SECOND, ANSWERS, LENGTH, MODEL = "win", "second", "answers", "length", "model"

NOTHING = "\u2013"


@dataclass(frozen=True)
class Column:
    """How a metric is shown.

    Attributes:
        form: of its mean and standard error.
        table: WIN, SECOND, ANSWERS, LENGTH or MODEL.
    """

    heading: str
    form: str
    meaning: str
    table: str


COLUMNS = {
    "win_rate": Column(
        "win rate", "{:.1%}", "share of the judged prompts on which the judge prefers the answer; a tie is half", WIN
    ),
    "win_rate_difference": Column(
        "difference", "{:+.1%}", "win rate minus the baseline's, on the prompts judged for both", WIN
    ),
    "win_rate_length_controlled": Column(
        "length-controlled",
        "{:.1%}",
        "win rate that answers of equal length would have, by logistic regression",
        WIN,
    ),
    "wins": Column("wins", "{:.0f}", "prompts on which the answer wins", WIN),
    "ties": Column("ties", "{:.0f}", "prompts on which neither wins, flips included", WIN),
    "losses": Column("losses", "{:.0f}", "prompts on which the answer loses", WIN),
    "flips": Column("flips", "{:.0f}", "prompts on which the verdict changed with the order of the two answers", WIN),
    "flip_rate": Column("flip rate", "{:.1%}", "flips as a share of the prompts with a verdict in both orders", WIN),
    "unparsed": Column("unparsed", "{:.0f}", "prompts with a verdict that could not be read; in no win rate", WIN),
    "not_judged": Column("not judged", "{:.0f}", "prompts without an outcome, unparsed ones too; in no win rate", WIN),
    "reverse_kl": Column(
        "reverse KL",
        "{:.3f}",
        "mean of log Q(y|x) - log P^(y|x) over the model's own samples, in nats, P^ the second model; less is better",
        SECOND,
    ),
    "reverse_kl_difference": Column(
        "reverse KL minus baseline", "{:+.3f}", "reverse KL minus the baseline's, by prompt", SECOND
    ),
    "nll": Column(
        "NLL",
        "{:.3f}",
        "mean of -log P^(y|x) / |y| of the answers under the second model, in nats per token; less is better",
        SECOND,
    ),
    "nll_difference": Column("NLL minus baseline", "{:+.3f}", "NLL minus the baseline's, by prompt", SECOND),
    "correct": Column("correct answers", "{:.1%}", "share of answers that code finds right", ANSWERS),
    "correct_difference": Column(
        "minus baseline", "{:+.1%}", "correct answers minus the baseline's, by prompt", ANSWERS
    ),
    "similarity": Column(
        "similarity to truth", "{:.4f}", "cosine similarity of the answer's embedding to the ground truth's", ANSWERS
    ),
    "similarity_difference": Column(
        "similarity minus baseline", "{:+.4f}", "similarity minus the baseline's, by prompt", ANSWERS
    ),
    "mauve": Column(
        "MAUVE", "{:.3f}", "how alike the answers and the ground truths are as distributions, 0 to 1", ANSWERS
    ),
    "answer_tokens": Column("answer tokens", "{:.1f}", "length of the answers", LENGTH),
    "answer_characters": Column("characters", "{:.1f}", "length of the answers as texts", LENGTH),
    "hit_limit": Column("hit limit", "{:.1%}", "share of answers cut at the limit", LENGTH),
    "empty": Column("empty", "{:.1%}", "share of answers without a word", LENGTH),
    "distinct_1": Column("distinct-1", "{:.3f}", "different words as a share of the words of an answer", LENGTH),
    "distinct_2": Column("distinct-2", "{:.3f}", "the same of pairs of words", LENGTH),
    "distinct_3": Column("distinct-3", "{:.3f}", "the same of three words in a row", LENGTH),
    "repetition": Column(
        "repetition", "{:.1%}", "share of the runs of four words of an answer that it has already said", LENGTH
    ),
    "loops": Column("loops", "{:.1%}", "share of answers that end in a phrase said again and again", LENGTH),
    "truth_logp": Column("truth logp", "{:.2f}", "log-probability of the ground truth in nats", MODEL),
    "truth_logp_per_token": Column("per token", "{:.3f}", "log-probability of the ground truth, per token", MODEL),
    "ranking_accuracy": Column(
        "ranking accuracy",
        "{:.1%}",
        "share of held-out negatives that the model finds less likely than their ground truth",
        MODEL,
    ),
    "reward_top1": Column(
        "reward top-1",
        "{:.1%}",
        "share of held-out groups whose ground truth gained the most log-probability over the reference",
        MODEL,
    ),
    "kendall_tau": Column(
        "Kendall's tau", "{:.3f}", "agreement of those gains with the order by similarity, -1 to 1", MODEL
    ),
}

INTERVAL = f"{LEVEL:.0%} interval"
INTERVAL_MEANING = (
    "percentile bootstrap over the prompts, of the estimate to its left; of equal scores, the exact binomial bound"
)
JUDGED = "judged"
JUDGED_MEANING = "prompts that the win rate is over"


def column(measurement: Measurement) -> Column:
    """Of a measurement's metric; an unknown one is shown by its name."""
    known = COLUMNS.get(measurement.metric)
    if known is not None:
        return known
    table = WIN if measurement.against else ANSWERS if measurement.decoding else MODEL
    return Column(measurement.metric.replace("_", " "), "{:.4g}", "", table)


@dataclass(frozen=True)
class Cell:
    """A value, and its standard error where there is one."""

    value: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} ± {self.error}" if self.error else self.value


def cell(estimate: Estimate | None, form: str) -> Cell:
    """Mean and standard error; an estimate that is no number is a dash, one that was not made is empty."""
    if estimate is None:
        return Cell()
    if math.isnan(estimate.mean):
        return Cell(NOTHING)
    error = "" if math.isnan(estimate.standard_error) else form.replace("+", "").format(estimate.standard_error)
    return Cell(form.format(estimate.mean), error.rstrip("%"))


def interval(estimate: Estimate | None, form: str) -> Cell:
    """The interval, empty where there is none."""
    if estimate is None or estimate.interval is None:
        return Cell()
    low, high = (form.format(bound) for bound in estimate.interval)
    return Cell(f"{low.rstrip('%')} to {high}")
