"""What a ranking signal is: a number per candidate, higher the nearer it is to the ground truth."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from data.command.errors import UserError
from data.schema import Group


@dataclass(frozen=True)
class SignalOptions:
    """Which models the signals use.

    Attributes:
        model: directory of the reference model.
        embedder: sentence-transformers name or path, or "reference".
        reward_model: directory or hub id of a sequence-classification model, for `reward`.
        bertscore_model: directory or hub id of an encoder, for `bertscore`.
        trust_remote_code: run code that comes with a model.
    """

    model: str
    embedder: str = "reference"
    reward_model: str | None = None
    bertscore_model: str | None = None
    trust_remote_code: bool = False


class Signal(ABC):
    """One ranking signal. The constructor loads what it needs, in the worker that scores.

    Attributes:
        name: of the module and of the column.
    """

    name: str

    @abstractmethod
    def __init__(self, options: SignalOptions): ...

    @classmethod
    @abstractmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        """What decides the values (model name and weights hash, library version, settings), for the manifest.

        Called before any work. Raises UserError if a model cannot be reached.
        """

    @abstractmethod
    def add(self, groups: Sequence[Group]) -> None:
        """Set `similarity[name]` of every candidate that lacks it, in place."""


class TextSignal(Signal):
    """A signal that compares two texts, one pair at a time, with no model."""

    library: str

    def __init__(self, options: SignalOptions):
        pass

    @classmethod
    def identity(cls, options: SignalOptions) -> dict[str, Any]:
        return library_identity(cls.name, cls.library)

    @abstractmethod
    def similarity(self, text: str, truth: str) -> float:
        """Of a candidate's text to its ground truth, in [0, 1]."""

    def add(self, groups: Sequence[Group]) -> None:
        for group in groups:
            for candidate in group.negatives:
                if self.name not in candidate.similarity:
                    candidate.similarity[self.name] = self.similarity(candidate.text, group.response)


def library_identity(signal: str, library: str) -> dict[str, Any]:
    """A library and its version. Raises UserError if it is not installed."""
    try:
        return {"library": library, "version": metadata.version(library)}
    except metadata.PackageNotFoundError:
        raise UserError(f"ranking signal '{signal}' needs {library}: pip install {library}.") from None
