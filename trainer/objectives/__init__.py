"""The home of objectives: one module each, found by its OBJECTIVE."""

from data.command.registry import Registry
from trainer.objectives.base import Objective, fault_of

OBJECTIVES: Registry[Objective] = Registry(
    "trainer.objectives",
    "OBJECTIVE",
    "objective",
    Objective,
    fault=fault_of,
    helpers=("contrast", "losses", "pairs", "rewards", "scheduled"),
)
# Of a command line that names none.
DEFAULT = "cpo"


def names_with(**attributes: object) -> str:
    """Names of the built-in objectives with such attributes, for help texts: "mle and pss"."""
    entries = map(OBJECTIVES.load, OBJECTIVES.names())
    names = [e.name for e in entries if all(getattr(e, name) == value for name, value in attributes.items())]
    return " and ".join(names)
