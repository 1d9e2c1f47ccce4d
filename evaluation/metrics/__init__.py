"""What is measured: one module per metric, see `evaluation.metrics.base`."""

from collections.abc import Sequence

from data.command.errors import UserError
from data.command.registry import Registry
from evaluation.metrics.base import RECORD, AnswerMetric, CheckpointMetric, Metric, columns_of

METRICS: Registry[type[Metric]] = Registry(
    "evaluation.metrics",
    "METRIC",
    "metric",
    Metric,
    classes=True,
    reserved=RECORD,
    helpers=("columns", "features", "likelihood", "logps", "rates", "second_model", "statistics"),
)


def in_order(names: Sequence[str]) -> list[type[Metric]]:
    """The metrics of these names, each once, in their order.

    Raises:
        UserError: one is unknown; or one from outside measures nothing, has no columns, or has a column or a name that
            stands for another metric in the report.
    """
    metrics = {metric.name: metric for metric in map(METRICS.load, names)}
    outside = [metric for metric in metrics.values() if METRICS.origin(metric.name)]
    if outside:
        _refuse_unusable(outside)
    return sorted(metrics.values(), key=lambda metric: (metric.order, metric.name))


def _refuse_unusable(outside: Sequence[type[Metric]]) -> None:
    known = [METRICS.load(name) for name in METRICS.names()]
    columns = {column.key: metric.name for metric in known for column in columns_of([metric])}
    record = {key: metric.name for metric in known for key in (metric.name, *metric.record_schema)}
    for metric in outside:
        if not issubclass(metric, AnswerMetric | CheckpointMetric):
            raise UserError(
                f"metric '{metric.name}' is of neither answers nor checkpoints, so nothing would be measured. Derive "
                "it from PromptMetric, SetMetric or CheckpointMetric of evaluation.metrics.base."
            )
        if not getattr(metric, "columns", ()):
            raise UserError(f"metric '{metric.name}' has no columns: see evaluation.metrics.base.Metric.")
        for key in [column.key for column in columns_of([metric])]:
            if columns.setdefault(key, metric.name) != metric.name:
                raise UserError(
                    f"metric '{metric.name}' has a column '{key}', as metric '{columns[key]}' has. Rename it."
                )
        for key in (metric.name, *metric.record_schema):
            if record.setdefault(key, metric.name) != metric.name:
                raise UserError(
                    f"metric '{metric.name}' has '{key}' in the record, as metric '{record[key]}' has. Rename it."
                )
