"""What is measured: one module per metric, see `evaluation.metrics.base`."""

from collections.abc import Sequence

from data.command.registry import Registry
from evaluation.metrics.base import Metric, is_metric

METRICS: Registry[type[Metric]] = Registry(
    "evaluation.metrics",
    "METRIC",
    "metric",
    is_metric,
    helpers=("columns", "features", "likelihood", "logps", "rates", "second_model", "statistics"),
)


def in_order(names: Sequence[str]) -> list[type[Metric]]:
    """The metrics of these names, each once, in their order. Raises UserError for an unknown one."""
    metrics = {metric.name: metric for metric in map(METRICS.load, names)}
    return sorted(metrics.values(), key=lambda metric: (metric.order, metric.name))
