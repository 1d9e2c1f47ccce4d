"""Numbers are finite, or what makes or reads them stops: one nan turns a mean, an order or a model into nan, silently.

Imports nothing heavy.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from data.command.errors import UserError

if TYPE_CHECKING:
    from data.schema import Group

LARGEST = (2 - 2**-23) * 2.0**127  # of float32, in which a set keeps numbers: what is larger would be kept as infinite
LOOK = "Look at the model's weights: they may hold such values, or be too large for the type that they are computed in."


def numbers_of(group: "Group") -> Iterator[tuple[str, float]]:
    """The numbers that a group has so far, each with its name: "reference_logp of negative 3 (an)"."""
    if group.reference_logp is not None:
        yield "reference_logp of the ground truth", group.reference_logp
    yield from (("response_embedding", value) for value in group.response_embedding or ())
    for number, candidate in enumerate(group.negatives):
        where = f"of negative {number} ({candidate.strategy})"
        for name in ("sampler_logp", "reference_logp"):
            value = getattr(candidate, name)
            if value is not None:
                yield f"{name} {where}", value
        for signal, value in candidate.similarity.items():
            if value is not None:
                yield f"similarity '{signal}' {where}", value


def require_finite(groups: Iterable["Group"], maker: str, advice: str) -> None:
    """Refuse groups with a number that is none, or that would be none as float32.

    Args:
        maker: what has just made numbers, e.g. "ranking signal 'reward'".
        advice: what to do, a sentence.

    Raises:
        UserError: naming the first group and number.
    """
    for group in groups:
        for name, value in numbers_of(group):
            if not abs(value) <= LARGEST:  # nan too
                beyond = ", beyond float32" if math.isfinite(value) else ""
                raise UserError(
                    f"{maker} gives group {group.id} a number that is not finite: {name} is {value}{beyond}. {advice}"
                )


def first_not_finite(values: Sequence[float | None]) -> int | None:
    """Where the first value stands that is nan or infinite; None, which is no number, is passed over."""
    return next((i for i, value in enumerate(values) if value is not None and not math.isfinite(value)), None)
