"""A study of an invented world, and what pretends to run its steps, for tests of recipes/study."""

import json
import time

from data.command.errors import UserError
from evaluation.metrics import METRICS, in_order
from evaluation.metrics.base import columns_of
from evaluation.metrics.columns import in_order as by_section
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report.files import to_json
from evaluation.report.results import Results
from recipes.study.running import Spent
from recipes.study.steps import Step

COLUMNS = by_section(columns_of(in_order(METRICS.names())))

STUDY = """
about: a world
data: {dataset: facts, task: prompt-completion, parts: {test: 30, validation: 20, train: 40}}
references: {reference: {blank: {vocab_size: 300}, part: train, options: {max_steps: 5}}}
sets:
  negatives: {reference: reference, part: train, options: {strategies: bn=2}}
  second: {reference: bn, part: train, options: {strategies: bn=2}}
training: {max_steps: 2}
rates: [1.0e-4, 1.0e-3, 1.0e-2]
seeds: [0, 1]
baseline: mle
rows:
  mle: {set: negatives, objective: mle}
  reference: {reference: reference}
  bn: {set: negatives, objective: cpo, options: {use: bn=2, beta: 5}}
  again: {set: second, objective: cpo, rate_of: bn, options: {use: bn=2, max_steps: 3}}
  both: {mle: mle, cpo: bn, alpha: 0.5}
hypotheses:
  H1: {measures: [truth_logp], rows: [bn], against: [mle, reference], changes: [[[bn, mle], [reference, mle]]]}
choose_by: {truth_logp: 1}
choose_metrics: [truth]
metrics: [truth, text]
evaluation: {decode: sample, max_new_tokens: 8}
"""


class Pretence:
    """What runs no step: writes the file that stands for a step, with numbers made from its name."""

    def __init__(self, fails: str = ""):
        self.ran: list[str] = []
        self.fails, self.busy, self.most = fails, 0, 0

    def __call__(self, step: Step) -> Spent:
        self.busy += step.cores
        self.most = max(self.most, self.busy)
        self.ran.append(step.name)
        time.sleep(0.001)
        self.busy -= step.cores
        if step.name == self.fails:
            raise UserError(f"step '{step.name}' failed")
        step.done.parent.mkdir(parents=True, exist_ok=True)
        if step.done.name == "report.json":
            models = [word.split("=")[0] for word in step.words[step.words.index("--model") + 1 :]]
            step.done.write_bytes(to_json(pretended(models)))
        elif step.done.name == "trainer_state.json":
            watched = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.5}, {"step": 2, "eval_loss": 2.75}]
            state = {"num_input_tokens_seen": 1000, "global_step": 2, "log_history": watched}
            step.done.write_text(json.dumps(state))
        elif step.done.name == "manifest.json":
            # Of 60 positions of truths, twice: half of them are kept of rn, 15% redrawn of mn.
            tokens = [{"prompt": 5, "response": 90, "an": 40, "rn": 90, "mn": 90}, {"an": 20, "rn": 15, "mn": 30}]
            strategies = {
                "an": {"count": 2},
                "bn": {"count": 2},
                "rn": {"count": 2, "rn_share": "0.2-0.8"},
                "mn": {"count": 2, "mn_share": 0.15},
            }
            shards = [{"tokens": each} for each in tokens]
            found = {"shards": shards, "counts": {"rows_written": 30}, "job": {"strategies": strategies}}
            step.done.write_text(json.dumps(found))
        else:
            step.done.touch()
        return Spent(10.0, 6.0)

    def end(self) -> None:
        raise AssertionError("nobody asked for an end")


def pretended(models: list[str]) -> Results:
    """A report in which the middle rate is the best, and bn better than mle by 0.5 +- 0.1."""
    truths = {"0.0001": -3.0, "0.001": -2.0, "0.01": -9.0, "mle": -2.0, "bn": -1.5}
    found = [Measurement(m, "", "truth_logp", Estimate(truths.get(m, -4.0), 0.2, 30)) for m in models]
    found += [
        Measurement(
            m, "", "truth_logp_difference", Estimate(truths.get(m, -4.0) - truths.get(models[0], -4.0), 0.1, 30)
        )
        for m in models[1:]
    ]
    return Results({"models": {m: {"weights_sha256": m} for m in models}}, {}, found, columns=COLUMNS)
