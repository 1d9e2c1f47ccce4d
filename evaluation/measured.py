"""What `evaluation.evaluate` returns: measurements as rows of a table."""

from typing import TYPE_CHECKING, Any

from evaluation.metrics.statistics import Measurement

if TYPE_CHECKING:
    from pandas import DataFrame


class Measurements(list[dict[str, Any]]):
    """Measurements in the order of the report, one dict each.

    Keys: `model`; `decoding`, "" for what needs no answers; `metric`; `against`, what answers were compared with, ""
    for nothing; `value`; `standard_error`, nan where there is none; `low` and `high`, the bootstrap's interval at 95%,
    None where it was not made; `n`, prompts or groups that it is over. Units are the metric's: nats, shares, tokens.
    """

    @classmethod
    def of(cls, measurements: list[Measurement]) -> "Measurements":
        """The rows of a report's measurements."""
        return cls(map(_row, measurements))

    def to_pandas(self) -> "DataFrame":
        """The rows as a pandas data frame with one column per key."""
        from pandas import DataFrame

        return DataFrame(list(self))


def _row(found: Measurement) -> dict[str, Any]:
    estimate = found.estimate
    low, high = estimate.interval or (None, None)
    names = {"model": found.model, "decoding": found.decoding, "metric": found.metric, "against": found.against}
    value = {"value": estimate.mean, "standard_error": estimate.standard_error, "low": low, "high": high}
    return {**names, **value, "n": estimate.n}
