"""Several runs' measurements as those of one, as far as they compare: what a verdict on all of them is by."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evaluation.metrics import known
from evaluation.metrics.base import TRUTH, columns_of, keys_of_record
from evaluation.metrics.columns import DIFFERENCE, Column
from evaluation.metrics.statistics import Difference, Measurement
from evaluation.report.results import Results
from evaluation.report.verdict import Verdict, leading_numbers, verdict

# Metric, decoding, opponent.
Number = tuple[str, str, str]
HASH = "sha256"
# In a metric's record: where something lies, which says nothing about its numbers.
PLACES = {"name", "path", "base_url", "base_urls"}
AGAINST = "Win rates against a model are left out of this, as it may be another one in each run."
UNPAIRED = (
    "Between models of two runs nothing is paired by prompt: both errors add up, as squares, which is too cautious; "
    "one evaluation of all these models, with the same --store, pairs them."
)


def joint_verdict(runs: Mapping[str, Results]) -> Verdict:
    """The verdict on the models of all runs, called RUN/MODEL, by what each run measured alike.

    Args:
        runs: by name; of the first one the baseline is.
    """
    if not _same([_hashes(results.job.get("data")) for results in runs.values()]):
        return Verdict([], "No verdict: the runs are not of the same prompts.")
    of_all, again = joined(runs)
    leading = leading_numbers(of_all)
    aside = again.get(_number(leading[0]), {}) if leading else {}
    found = verdict(of_all, aside)
    if not found.lines:
        return Verdict([], "No verdict: nothing that says which way is better was measured alike in all runs.")
    hedge = f"{found.hedge} {UNPAIRED}"
    if any(m.against not in ("", TRUTH) for results in runs.values() for m in results.measurements):
        hedge += f" {AGAINST}"
    also = found.also
    if aside:
        same = f"Of the same weights, and the same {of_all.column(leading[0]).heading}, so spoken of once"
        also = (*also, f"{same}: {', '.join(f'{model} as {name}' for model, name in aside.items())}.")
    return replace(found, also=also, hedge=hedge)


def joined(runs: Mapping[str, Results]) -> tuple[Results, dict[Number, dict[str, str]]]:
    """What all runs measured alike: the same number by the same decoding, with the same judge, second model or groups.

    Not what is against a model, which may be another one in each run. What a later run found of the same weights too is
    there once.

    Returns:
        That, and by number the models that another one of the same weights stands for -> that one.
    """
    owners = {column.key: keys_of_record(metric) for metric in known() for column in columns_of([metric])}
    of_run = [{_number(m) for m in results.measurements} for results in runs.values()]
    everywhere = set.intersection(*of_run) if of_run else set()
    numbers = {
        (metric, decoding, against)
        for metric, decoding, against in everywhere
        if against in ("", TRUTH)
        and not metric.endswith(DIFFERENCE)
        and _same([_settings(results.job, owners.get(metric, [metric])) for results in runs.values()])
    }
    measurements: list[Measurement] = []
    differences: list[Difference] = []
    columns: dict[str, Column] = {}
    seen: dict[Any, tuple[str, str]] = {}  # a number of some weights -> the run, and the model's name
    again: dict[Number, dict[str, str]] = {}
    for run, results in runs.items():
        names: dict[tuple[str, Number], str] = {}
        for m in results.measurements:
            weights = (results.job.get("models") or {}).get(m.model, {}).get("weights_sha256")
            same = (weights, _number(m), m.estimate.mean, m.estimate.n) if weights else (run, m.model, _number(m))
            first_run, name = seen.setdefault(same, (run, f"{run}/{m.model}"))
            names[m.model, _number(m)] = name if first_run != run else f"{run}/{m.model}"
            if first_run == run and _number(m) in numbers:
                measurements.append(replace(m, model=f"{run}/{m.model}"))
            elif _number(m) in numbers:
                again.setdefault(_number(m), {})[f"{run}/{m.model}"] = name
        for d in _paired(results):
            model, other = (names.get((model, _number(d)), f"{run}/{model}") for model in (d.model, d.other))
            differences.append(replace(d, model=model, other=other))
        for key, column in results.columns.items():
            columns.setdefault(key, column)
    first, results = next(iter(runs.items()))
    baseline = results.job.get("baseline")
    job = {"baseline": f"{first}/{baseline}"} if baseline else {}
    return Results(job, {}, measurements, columns=columns, differences=differences), again


def _paired(results: Results) -> Iterator[Difference]:
    """The paired differences of a run, those from its baseline too, which are among its measurements."""
    yield from results.differences
    baseline = str(results.job.get("baseline") or "")
    for m in results.measurements:
        if baseline and m.metric.endswith(DIFFERENCE):
            yield Difference(m.model, baseline, m.decoding, m.metric.removesuffix(DIFFERENCE), m.estimate, m.against)


def _number(m: Measurement | Difference) -> Number:
    return m.metric, m.decoding, m.against


def _settings(job: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """What decides a metric's numbers, of a record; no places."""
    return {key: _without_places(job.get(key)) for key in keys}


def _without_places(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_places(item) for key, item in value.items() if key not in PLACES}


def _hashes(data: Any) -> Any:
    """What says which prompts a run is of."""
    return {key: value for key, value in data.items() if key.endswith(HASH)} if isinstance(data, Mapping) else None


def _same(values: list[Any]) -> bool:
    return all(value == values[0] for value in values)
