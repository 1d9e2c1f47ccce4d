"""Ranking signals: similarities of each candidate to its ground truth. A module put here that defines SIGNAL is one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.command.entries import check
from data.command.errors import UserError
from data.command.privacy import scrub
from data.command.registry import Registry
from negatives_gen.signals.base import Reference, Signal

SIGNALS: Registry[type[Signal]] = Registry(
    "negatives_gen.signals",
    "SIGNAL",
    "ranking signal",
    Signal,
    classes=True,
    reserved=("score",),  # a record of a shard times the scoring beside each signal
)


def load_signals(options: Mapping[str, Any], reference: Reference) -> list[Signal]:
    """The signals of those names, in their order, with their models loaded. Raises UserError."""
    return [SIGNALS.load(name)(of_signal, reference) for name, of_signal in options.items()]


def models_of(name: str, job: Mapping[str, Any]) -> dict[str, str]:
    """The models that a set's similarities are by, under the options that named them: {"embedder": "reference"}.

    None of a signal that takes no model, or is from outside.

    Args:
        job: of the set's manifest.
    """
    if name not in SIGNALS.names():
        return {}
    settings = job.get("signals", {}).get(name, {})
    names = [f.name for f in dataclasses.fields(SIGNALS.load(name).Options) if f.metadata.get("is_name")]
    return {option: scrub(str(settings[option])) for option in names if settings.get(option)}


def job_identity(name: str, named: Any, local: Any, reference: Reference) -> dict[str, Any]:
    """What a manifest says of a signal: its options, what decides its values, and what not every signal has.

    That is `only_of`, where only candidates of some strategies have values, and of one from outside its origin.

    Args:
        named: the options as the user wrote them.
        local: the same with paths that can be opened.

    Raises:
        UserError: an option is out of range or has a name that the manifest needs, or a model cannot be reached.
    """
    signal, origin = SIGNALS.load(name), SIGNALS.origin(name)
    check(named)
    settings = dataclasses.asdict(named)
    if taken := sorted(settings.keys() & {"only_of", "origin"}):
        raise UserError(
            f"ranking signal '{name}' has an option '{taken[0]}', which a manifest says of each. Rename it."
        )
    having = {"only_of": list(signal.only_of)} if signal.only_of else {}
    return {**settings, **signal.identity(local, reference), **having, **({"origin": origin} if origin else {})}
