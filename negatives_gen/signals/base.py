"""What a ranking signal is: a number per candidate, higher the nearer it is to the ground truth."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, TypeVar

from data.command.errors import UserError
from data.command.options import NoOptions
from data.schema import Group

T = TypeVar("T")
V = TypeVar("V")
# Batches of a model between two words about how far it is; of fewer, texts of one length would be harder to find.
BATCHES_A_PART = 32


@dataclass(frozen=True)
class Reference:
    """The reference model, which a signal may use.

    Attributes:
        model: its directory.
        trust_remote_code: run code that comes with a model, this one or another.
    """

    model: str
    trust_remote_code: bool = False


class Signal(ABC):
    """One ranking signal. The constructor loads what it needs, in the worker that scores.

    Attributes:
        name: of the module and of the column.
        summary: half a line for --help.
        Options: a frozen dataclass of its options (`data.command.options.option`), whose `check` raises UserError for a
            value out of range. They are options of the commands, and stand in the manifest.
        embeds: whether it sets the groups' `response_embedding`.
        reads: names of `--columns` that it needs; then it cannot be added to a finished set, which does not hold them.
        only_of: the strategies whose candidates have a value; None: all have. The others' is None, null in the shard.
        tell: says how many of how many texts `add` has compared, as often as it likes; set by the stage that scores.
    """

    name: str
    summary: str
    Options: ClassVar[type] = NoOptions
    embeds: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    only_of: tuple[str, ...] | None = None
    tell: Callable[[int, int], None] = staticmethod(lambda done, of: None)

    @abstractmethod
    def __init__(self, options: Any, reference: Reference): ...

    @classmethod
    @abstractmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        """What decides the values beside the options (weights hash, library version), JSON-like, for the manifest.

        Called before any work. Raises UserError if a model cannot be reached.
        """

    @classmethod
    def look_at(cls, options: Any, prompts: Sequence[list[dict[str, str]]]) -> None:
        """Raise UserError for prompts that it could not take; called before any work, with one of each kind.

        Args:
            prompts: each as messages, a text as that of a user. Two are of a kind if the same roles speak in the same
                order.
        """
        return

    def pass_over(self, groups: Sequence[Group]) -> None:
        """Set `similarity[name]` of the candidates that it has no value for to None, in place; before `add`."""
        for candidate in (candidate for group in groups for candidate in group.negatives):
            if self.only_of is not None and candidate.strategy not in self.only_of:
                candidate.similarity.setdefault(self.name, None)

    @abstractmethod
    def add(self, groups: Sequence[Group]) -> None:
        """Set `similarity[name]` of every candidate that lacks it, in place. One that has None does not lack it."""

    def in_parts(self, compute: Callable[[Sequence[T]], Iterable[V]], texts: Sequence[T], batch_size: int) -> list[V]:
        """What a model makes of texts, some batches at a time, so that it can be told how many are done."""
        values, size = list[V](), batch_size * BATCHES_A_PART
        for start in range(0, len(texts), size):
            values.extend(compute(texts[start : start + size]))
            self.tell(len(values), len(texts))
        return values


class TextSignal(Signal):
    """A signal that compares two texts, one pair at a time, with no model."""

    library: str

    def __init__(self, options: Any, reference: Reference):
        pass

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        return library_identity(cls.name, cls.library)

    @abstractmethod
    def similarity(self, text: str, truth: str) -> float:
        """The similarity of a candidate's text to its ground truth, in [0, 1]."""

    def add(self, groups: Sequence[Group]) -> None:
        lacking = [(c, g.response) for g in groups for c in g.negatives if self.name not in c.similarity]
        for number, (candidate, truth) in enumerate(lacking, 1):
            candidate.similarity[self.name] = self.similarity(candidate.text, truth)
            self.tell(number, len(lacking))


def library_identity(signal: str, library: str) -> dict[str, Any]:
    """A library and its version. Raises UserError if it is not installed."""
    try:
        return {"library": library, "version": metadata.version(library)}
    except metadata.PackageNotFoundError:
        raise UserError(f"ranking signal '{signal}' needs {library}: pip install {library}.") from None
