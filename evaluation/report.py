"""The results as a table for people and as JSON for programs."""

import json
import math
from typing import Any

from evaluation.statistics import Estimate

REPORT_VERSION = 1

COLUMNS = {
    "correct": ("correct answers", "{:.1%}"),
    "similarity": ("similarity to truth", "{:.4f}"),
    "truth_logp": ("truth logp", "{:.2f}"),
    "truth_logp_per_token": ("per token", "{:.3f}"),
    "ranking_accuracy": ("ranking accuracy", "{:.1%}"),
    "reward_top1": ("reward top-1", "{:.1%}"),
    "kendall_tau": ("Kendall's tau", "{:.3f}"),
    "answer_tokens": ("answer tokens", "{:.1f}"),
    "hit_limit": ("hit limit", "{:.1%}"),
}

EXPLANATION = """\
- correct answers: share of greedy answers that code finds right.
- similarity to truth: cosine similarity of the greedy answer's embedding to the ground truth's.
- truth logp, per token: log-probability of the ground truth in nats, per continuation and per token.
- ranking accuracy: share of held-out negatives that the model finds less likely than their ground truth.
- reward top-1: share of held-out groups whose ground truth gained the most log-probability over the reference.
- Kendall's tau: agreement of those gains with the order by similarity, -1 to 1.
- answer tokens, hit limit: length of the greedy answers, and share of them cut at the limit.
- Behind ±: one standard error."""


def table(results: dict[str, dict[str, Estimate]]) -> str:
    """A Markdown table, one line per checkpoint, with standard errors."""
    columns = [c for c in COLUMNS if any(c in metrics for metrics in results.values())]
    lines = [["model", *(COLUMNS[c][0] for c in columns)]]
    for name, metrics in results.items():
        lines.append([name, *(_cell(metrics.get(c), COLUMNS[c][1]) for c in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


def markdown(job: dict[str, Any], results: dict[str, dict[str, Estimate]]) -> str:
    """report.md: the table, what its columns mean, and what was evaluated."""
    data = job["data"]
    models = "\n".join(
        f"- {name}: `{m['path']}`, weights {m['weights_sha256'][:16]}" for name, m in job["models"].items()
    )
    return (
        f"# Evaluation\n\n{data['used']} of {data['examples']} examples of `{data['name']}`, split {data['split']}"
        + (f"; {job['shards']['groups']} groups of `{job['shards']['name']}`" if job["shards"] else "")
        + f".\n\n{table(results)}\n\n{EXPLANATION}\n\n## Models\n\n{models}\n"
    )


def to_json(job: dict[str, Any], environment: dict[str, Any], results: dict[str, dict[str, Estimate]]) -> str:
    """report.json: versioned, with everything the table shows."""
    values = {
        name: {
            key: {
                "mean": e.mean,
                "standard_error": None if math.isnan(e.standard_error) else e.standard_error,
                "n": e.n,
            }
            for key, e in metrics.items()
        }
        for name, metrics in results.items()
    }
    content = {"report_version": REPORT_VERSION, "job": job, "environment": environment, "results": values}
    return json.dumps(content, indent=2) + "\n"


def _cell(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return ""
    if math.isnan(estimate.standard_error):
        return form.format(estimate.mean)
    error = form.format(estimate.standard_error).rstrip("%")
    return f"{form.format(estimate.mean)} ± {error}"
