"""Strategies: how negatives are made, one module each. A module put here that defines STRATEGY is one."""

from typing import Any

from data.command.errors import UserError
from data.command.registry import Registry
from data.counts import least_of
from negatives_gen.strategies.base import Strategy, fault_of

# A record of a shard counts the tokens of prompts, ground truths and all negatives beside those of each strategy, and
# times the scoring beside each strategy and signal.
RESERVED = ("prompt", "response", "negatives", "score")
STRATEGIES: Registry[Strategy] = Registry(
    "negatives_gen.strategies", "STRATEGY", "strategy", Strategy, fault=fault_of, reserved=RESERVED
)


def job_settings(name: str, count: int, options: Any) -> dict[str, Any]:
    """What a manifest says of a strategy: count, settings and, of one from outside, its origin.

    Raises:
        UserError: an option is out of range, or has a name that the manifest needs.
    """
    settings, origin = STRATEGIES.load(name).settings(options), STRATEGIES.origin(name)
    for key in ("count", "origin"):
        if key in settings:
            raise UserError(f"strategy '{name}' has an option '{key}', which a manifest says of each. Rename it.")
    if least_of({"count": count, **settings}) > count:
        raise UserError(
            f"strategy '{name}' is to keep groups of at least {settings['least']}, but {name}={count} is fewer."
        )
    return {"count": count, **settings, **({"origin": origin} if origin else {})}
