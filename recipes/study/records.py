"""What a study has found out, in one small file that is kept when the runs are gone: rates, measurements, costs."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.command.errors import UserError
from data.shape import Each, ListOf, Maybe, parse_shaped
from evaluation.metrics.columns import DIFFERENCE
from evaluation.report.results import Results

NUMBER = {"mean": float, "error": Maybe(float), "n": int}
COMPARISON = {
    "row": str,
    "against": str,
    "seed": int,
    "values": Each(NUMBER),
    "theirs": Each(NUMBER),
    "differences": Each(NUMBER),
    "weights": Each(str),
}
NUMBERS = ("values", "theirs", "differences")
SHAPE = {
    "choices": Each({"rate": float, "scores": Each(float), "errors": Each(float), "values": Each(Each(float))}),
    "comparisons": ListOf(COMPARISON),
    "training": Each({"tokens": int, "steps": int}),
    "references": Each(Each(float)),
    "sets": Each({"groups": int, "sampled": Each(int)}),
    "steps": Each({"wall": float, "processor": float}),
}


@dataclass(frozen=True)
class Number:
    """A mean over prompts with its standard error; None of equal values."""

    mean: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """One evaluation of a row beside another one, of one seed.

    Attributes:
        values, theirs: measure -> the row's number, and the other's: "reverse_kl", or "greedy/nll" of other answers
            than those that are sampled.
        differences: measure -> row minus other, paired by prompt; of measures that are paired.
        weights: the two rows -> SHA-256 of their weights.
    """

    row: str
    against: str
    seed: int
    values: Mapping[str, Number]
    theirs: Mapping[str, Number]
    differences: Mapping[str, Number]
    weights: Mapping[str, str]


@dataclass
class Records:
    """All that a study has found out.

    Attributes:
        choices: row -> its chosen rate, the score of each rate with its error, and the measures behind it.
        comparisons: finished evaluations.
        training: training step -> tokens that its forward passes read, and optimiser steps.
        references: reference step -> optimiser step -> validation loss, where it was watched.
        sets: set step -> groups, and tokens drawn from the reference's distribution, by strategy.
        steps: step -> wall and processor seconds that it took.
    """

    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    training: dict[str, dict[str, int]] = field(default_factory=dict)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def rates(self) -> dict[str, float]:
        """Row -> its chosen rate."""
        return {row: choice["rate"] for row, choice in self.choices.items()}

    def has(self, row: str, against: str, seed: int) -> bool:
        """Whether this comparison was made, of the newest models."""
        return any((c.row, c.against, c.seed) == (row, against, seed) for c in self.newest)

    @property
    def newest(self) -> list[Comparison]:
        """The comparisons of each row's newest model: where it was trained again, older models' are left out."""
        last = {(name, c.seed): weights for c in self.comparisons for name, weights in c.weights.items()}
        return [c for c in self.comparisons if all(last[name, c.seed] == w for name, w in c.weights.items())]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_records(path: Path) -> Records:
    """The records of a file; none where there is no file. Raises UserError for a damaged one."""
    if not path.is_file():
        return Records()
    try:
        found = parse_shaped(path.read_bytes(), SHAPE)
    except ValueError as error:
        raise UserError(f"'{path}' is damaged: {error}. Take it from git again, or remove it.") from None
    made = [
        Comparison(**{**entry, **{name: _numbers(entry[name]) for name in NUMBERS}}) for entry in found["comparisons"]
    ]
    return Records(comparisons=made, **{key: found[key] for key in SHAPE if key != "comparisons"})


def _numbers(entries: Mapping[str, Any]) -> dict[str, Number]:
    return {key: Number(**entry) for key, entry in entries.items()}


def comparison_of(results: Results, row: str, against: str, seed: int) -> Comparison:
    """What a report of two models, or of one beside itself, says of them."""
    by_model: dict[str, dict[str, Number]] = {row: {}, against: {}}
    for found in results.measurements:
        estimate = found.estimate
        error = None if estimate.standard_error != estimate.standard_error else estimate.standard_error
        by_model[found.model][measure_key(found.decoding, found.metric)] = Number(estimate.mean, error, estimate.n)
    own = by_model[row]
    differences = {k.removesuffix(DIFFERENCE): v for k, v in own.items() if k.endswith(DIFFERENCE)}
    values, theirs = ({k: v for k, v in by_model[n].items() if not k.endswith(DIFFERENCE)} for n in (row, against))
    weights = {name: results.job["models"][name]["weights_sha256"] for name in (row, against)}
    return Comparison(row, against, seed, values, theirs, differences, weights)


def measure_key(decoding: str, metric: str) -> str:
    """How records call a measure: of sampled answers, or of none, by its metric alone."""
    return metric if decoding in ("", "sample") else f"{decoding}/{metric}"
