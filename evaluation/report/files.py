"""report.json: what programs read, and its JSON schema."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from data.command.errors import UserError, first_line
from data.shape import Each, Maybe, misfit, parse_json
from data.storage import Folder
from evaluation.metrics import METRICS, columns, in_order
from evaluation.metrics.statistics import Difference, Estimate, Measurement
from evaluation.report.described import summary
from evaluation.report.results import Results

REPORT_VERSION = 3
REPORT = "report.json"
PARTS = {"job": dict, "environment": dict, "columns": dict, "measurements": list, "notes": list}
# Of a report's job, what is more than shown.
JOB = {"models": Maybe(Each({"weights_sha256": Maybe(str)}))}


def report_schema(others: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON schema of report.json: schema.json, and what each metric adds to the record (`Metric.record_schema`).

    Args:
        others: metrics from outside that were measured, `package.module:NAME`.

    Raises:
        UserError: there is no such metric.
    """
    schema = parse_json(resources.files("evaluation.report").joinpath("schema.json").read_bytes())
    for metric in in_order([*METRICS.names(), *others]):
        schema["properties"]["job"]["properties"] |= metric.record_schema
    return schema


def to_json(results: Results) -> bytes:
    """report.json; what is no finite number becomes null."""
    content = {
        "report_version": REPORT_VERSION,
        "job": results.job,
        "environment": results.environment,
        "columns": {
            key: columns.to_json(column) for key, column in results.columns.items() if key in _measured(results)
        },
        "measurements": results.measurements,
        "differences": results.differences,
        "notes": results.notes,
    }
    return (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """JSON of dicts, lists, texts, numbers, measurements and differences, these in one flat object each."""
    if isinstance(value, Measurement | Difference):
        estimate = value.estimate
        return {
            "model": value.model,
            **({"other": value.other} if isinstance(value, Difference) else {}),
            "decoding": value.decoding,
            "metric": value.metric,
            "against": value.against,
            "mean": plain(estimate.mean),
            "standard_error": plain(estimate.standard_error),
            "n": estimate.n,
            "interval": plain(estimate.interval),
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measurement(entry: Mapping[str, Any]) -> Measurement:
    """The measurement of an entry of report.json. Raises KeyError, TypeError, ValueError or OverflowError."""
    interval = entry.get("interval")
    estimate = Estimate(
        _number(entry["mean"]),
        _number(entry["standard_error"]),
        int(entry["n"]),
        (_number(interval[0]), _number(interval[1])) if interval is not None else None,
    )
    return Measurement(
        str(entry["model"]), str(entry["decoding"]), str(entry["metric"]), estimate, str(entry.get("against", ""))
    )


def difference(entry: Mapping[str, Any]) -> Difference:
    """The difference of an entry of report.json. Raises KeyError, TypeError, ValueError or OverflowError."""
    m = measurement(entry)
    return Difference(m.model, str(entry["other"]), m.decoding, m.metric, m.estimate, m.against)


def read_report(path: str) -> Results:
    """A finished run's results, without its samples.

    Args:
        path: of the run's directory, local or a URL.

    Raises:
        UserError: there is no report, it is damaged, or of another version.
    """
    folder = Folder(path)
    found = folder.read_if_there(REPORT)  # outside of the block below: a store that is down is no damage
    if found is None:
        raise UserError(
            f"'{path}' has no {REPORT}, so it is no finished evaluation. Give the --out of `python -m evaluation.run`."
        )
    try:
        content = parse_json(found)
    except ValueError as error:
        raise _damaged(path, first_line(error)) from error
    version = content.get("report_version") if isinstance(content, dict) else None
    if version != REPORT_VERSION:
        raise UserError(
            f"{REPORT} of '{path}' has version {version}, this program reads version {REPORT_VERSION}. Run the "
            "evaluation again."
        )
    for key, kind in PARTS.items():
        if not isinstance(content.get(key), kind):
            raise _damaged(path, f"no {key}")
    if wrong := misfit(content["job"], JOB, "job"):
        raise _damaged(path, wrong)
    try:
        measurements = [measurement(entry) for entry in content["measurements"]]
        differences = [difference(entry) for entry in content.get("differences", [])]  # older reports have none
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, f"in a measurement, {type(error).__name__} {first_line(error)}") from error
    try:
        shown = {key: columns.from_json(key, entry) for key, entry in content["columns"].items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, f"in a column, {type(error).__name__} {first_line(error)}") from error
    try:
        summary(content["job"])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, f"in the job, {type(error).__name__} {first_line(error)}") from error
    notes = [str(note) for note in content["notes"]]
    return Results(
        content["job"], content["environment"], measurements, notes=notes, columns=shown, differences=differences
    )


def _measured(results: Results) -> set[str]:
    swept = (results.job.get("sweep") or {}).get("validation") or []
    return {m.metric for m in results.measurements} | {
        m.metric if isinstance(m, Measurement) else m["metric"] for m in swept
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _damaged(path: str, why: str) -> UserError:
    return UserError(f"{REPORT} of '{path}' is damaged ({why}). Run the evaluation again.")
