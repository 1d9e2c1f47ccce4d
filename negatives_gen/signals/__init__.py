"""Ranking signals: similarities of each candidate to its ground truth, one module and one named column each."""

import importlib

from negatives_gen.signals.base import Signal, SignalOptions


def signal_class(name: str) -> type[Signal]:
    """The class that module `name` defines as SIGNAL. Names: `data.schema.SIGNALS`, the default first."""
    return importlib.import_module(f"{__name__}.{name}").SIGNAL


def load_signals(names: list[str], options: SignalOptions) -> list[Signal]:
    """The signals of those names, with their models loaded. Raises UserError."""
    return [signal_class(name)(options) for name in names]
