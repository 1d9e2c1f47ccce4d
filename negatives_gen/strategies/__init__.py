"""Strategies: how negatives are made, one module each. A module put here is a strategy of its name."""

import importlib
import pkgutil

from negatives_gen.strategies.base import Strategy


def available() -> list[str]:
    """Names of all strategies, in the order in which their negatives stand in a group."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_strategy(name: str) -> Strategy:
    """The strategy that module `name` defines as STRATEGY."""
    return importlib.import_module(f"{__name__}.{name}").STRATEGY
