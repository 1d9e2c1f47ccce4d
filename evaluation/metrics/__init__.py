"""What is measured: one module per metric, see `evaluation.metrics.base`."""

from collections.abc import Iterable, Sequence

from data.command.errors import UserError
from data.command.registry import Registry
from evaluation.metrics.base import RECORD, Metric, columns_of, fault_of, keys_of_record

METRICS: Registry[type[Metric]] = Registry(
    "evaluation.metrics",
    "METRIC",
    "metric",
    Metric,
    classes=True,
    fault=fault_of,
    reserved=RECORD,
    helpers=(
        *("agreement", "columns", "embeddings", "features", "likelihood", "logps", "panel_rates", "rates"),
        *("second_model", "statistics"),
    ),
)


def in_order(names: Sequence[str]) -> list[type[Metric]]:
    """The metrics of these names, each once, in their own order. Raises UserError, see `as_asked`."""
    return _sorted(as_asked(names))


def as_asked(names: Sequence[str]) -> list[type[Metric]]:
    """The metrics of these names, each once, in the order of the names.

    Raises:
        UserError: one is unknown; or one from outside has a column or a key of the record that stands for something
            else in the report.
    """
    metrics = {metric.name: metric for metric in map(METRICS.load, names)}
    outside = [metric for metric in metrics.values() if METRICS.origin(metric.name)]
    if outside:
        _refuse_colliding(outside)
    return list(metrics.values())


def known() -> list[type[Metric]]:
    """The built-in metrics and those from outside that were loaded, in their order."""
    return _sorted(map(METRICS.load, [*METRICS.names(), *METRICS.loaded()]))


def _sorted(metrics: Iterable[type[Metric]]) -> list[type[Metric]]:
    return sorted(metrics, key=lambda metric: (metric.order, metric.name))


def _refuse_colliding(outside: Sequence[type[Metric]]) -> None:
    ours = [METRICS.load(name) for name in METRICS.names()]
    columns = {column.key: metric.name for metric in ours for column in columns_of([metric])}
    record = {key: f"metric '{metric.name}'" for metric in ours for key in keys_of_record(metric)}
    record |= dict.fromkeys(RECORD, "every evaluation")
    for metric in outside:
        for key in [column.key for column in columns_of([metric])]:
            if columns.setdefault(key, metric.name) != metric.name:
                raise UserError(
                    f"metric '{metric.name}' has a column '{key}', as metric '{columns[key]}' has. Rename it."
                )
        own = f"metric '{metric.name}'"
        for key in keys_of_record(metric):
            if record.setdefault(key, own) != own:
                raise UserError(f"{own} has '{key}' in the record, as {record[key]} has. Rename it.")
