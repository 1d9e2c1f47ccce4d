"""A figure with its bound, as a part hands it back."""

import math
from typing import Any


def at_most(what: str, value: float, bound: float) -> dict[str, Any]:
    """A figure that may not be above its bound; one that is not finite is beyond it, and is kept as None."""
    return _check(what, value, bound, "at most", value <= bound)


def at_least(what: str, value: float, bound: float) -> dict[str, Any]:
    """A figure that may not be below its bound."""
    return _check(what, value, bound, "at least", value >= bound)


def _check(what: str, value: float, bound: float, sense: str, holds: bool) -> dict[str, Any]:
    if not math.isfinite(value):
        return {"what": what, "value": None, "sense": sense, "bound": bound, "holds": False}
    return {"what": what, "value": float(value), "sense": sense, "bound": bound, "holds": bool(holds)}
