"""Which learning rate a row is given: by its measures on validation prompts, which no table uses."""

import math
from collections.abc import Mapping
from typing import Any

from data.command.errors import UserError
from evaluation.metrics.columns import DIFFERENCE
from evaluation.report.results import Results
from recipes.study.records import measure_key


def choose(
    values: Mapping[str, Mapping[str, float]],
    choose_by: Mapping[str, float],
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The rate with the largest weighted sum of its measures, of equal ones the smallest; and what it was chosen by.

    Args:
        values: rate -> measure -> its mean on the validation prompts.
        choose_by: measure -> weight.
        errors: rate -> measure -> error of its difference from the rate that is evaluated first.

    Returns:
        As `Records.choices` holds it: rate, scores of all rates, errors of their differences from the first one's (as
        if the measures' errors were independent), values.

    Raises:
        UserError: a measure is missing.
    """
    scores = {}
    for rate, found in values.items():
        if missing := [measure for measure in choose_by if measure not in found]:
            raise UserError(f"choose_by names '{missing[0]}', which was not measured; there are {', '.join(found)}.")
        scores[rate] = sum(weight * found[measure] for measure, weight in choose_by.items())
    best = max(scores, key=lambda rate: (scores[rate], -float(rate)))
    noise = {
        rate: math.hypot(*(weight * found[measure] for measure, weight in choose_by.items()))
        for rate, found in (errors or {}).items()
        if all(measure in found for measure in choose_by)
    }
    kept = {rate: dict(found) for rate, found in values.items()}
    return {"rate": float(best), "scores": scores, "errors": noise, "values": kept}


def values_of(results: Results) -> dict[str, dict[str, float]]:
    """Rate -> measure -> mean, of the report of an evaluation whose models are called by their rates."""
    found: dict[str, dict[str, float]] = {}
    for made in results.measurements:
        found.setdefault(made.model, {})[measure_key(made.decoding, made.metric)] = made.estimate.mean
    return found


def errors_of(results: Results) -> dict[str, dict[str, float]]:
    """Rate -> measure -> error of its difference from the first rate's, paired by prompt; as of `values_of`."""
    found: dict[str, dict[str, float]] = {}
    for made in results.measurements:
        error = made.estimate.standard_error
        if made.metric.endswith(DIFFERENCE) and error == error:
            key = measure_key(made.decoding, made.metric).removesuffix(DIFFERENCE)
            found.setdefault(made.model, {})[key] = error
    return found


def at_an_end(choice: Mapping[str, Any]) -> bool:
    """Whether the chosen rate is the smallest or the largest that was tried, so that a better one may lie beyond."""
    tried = [float(rate) for rate in choice["scores"]]
    return choice["rate"] in (min(tried), max(tried))
