"""What is evaluated: prompts, checkpoints and decodings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.schema import Group
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import Checkpoint
from evaluation.answers.decoding import Decoding


@dataclass(frozen=True)
class Part:
    """Some of an evaluation's prompts.

    Attributes:
        name: unlike that of another part.
        prompts: indices, rising.
    """

    name: str
    prompts: Sequence[int]


@dataclass(frozen=True)
class Evaluation:
    """Prompts, checkpoints and decodings of an evaluation.

    Attributes:
        dataset, split: of the examples.
        reading: how their rows were read, as the report says it: `task`, and what else was asked for.
        examples: how many were read.
        examples_sha256: of their ids in order, see `data.sources.examples.fingerprint`.
        checkpoints: that are compared, without a sweep's ensembles; the first one's prompts are those of all.
        mixed: the CPO model of a sweep, whose ensembles have its settings, tokenizer and prompts; None without one.
        decodings: that were asked for.
        test: prompts that the numbers are of.
        validation: prompts that a sweep's alpha is chosen on; None without one.
        seed: of whatever is drawn.
        store: keeps what was found out.
    """

    dataset: str
    reading: Mapping[str, Any]
    split: str
    examples: int
    examples_sha256: str
    checkpoints: tuple[Checkpoint, ...]
    mixed: Checkpoint | None
    decodings: tuple[Decoding, ...]
    test: Part
    validation: Part | None
    seed: int
    store: Store

    @property
    def groups(self) -> list[Group]:
        """The prompts, in their order, as the first checkpoint tokenises them."""
        return self.checkpoints[0].groups

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the prompts: the test half, and a sweep's validation half."""
        return (self.test,) if self.validation is None else (self.test, self.validation)

    @property
    def baseline(self) -> str:
        """The model whose values the others' are also given as a difference from."""
        return self.checkpoints[0].name
