"""Stubs for faults and scales that this machine lacks; each says so in its name."""

import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config
from data.models import load_tokenizer
from data.schema import Group
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.job.progress import print_outcome
from negatives_gen.models.engine import Request, Sample
from negatives_gen.signals import Reference, Signal
from negatives_gen.verbs.extend import ExtendConfig, extend

LENGTH = 6


class EngineStub:
    """Samples tokens at random, after `engine.seconds_per_prompt`, or raises `engine.refuses`; for kills and for scale.

    A prompt that holds the text `engine.dies_of` kills its process.
    """

    slots = 1024

    def __init__(self, model: str, *, options: dict[str, Any]):
        if "refuses" in options:
            raise UserError(options["refuses"])
        self.seconds_per_prompt = options.get("seconds_per_prompt", 0)
        self.dies_of = options.get("dies_of")
        self.tokenizer = load_tokenizer(model)
        special = set(self.tokenizer.all_special_ids)
        self.words = {i: t for t, i in self.tokenizer.get_vocab().items() if i not in special and t.isalpha()}
        self.ids = sorted(self.words)

        self.running = self.unfinished = 0
        self._requests: deque[tuple[str, Request]] = deque()

    def start(self, key: str, request: Request) -> None:
        if self.dies_of is not None and self.dies_of in self.tokenizer.decode(list(request.prompt)):
            os.kill(os.getpid(), signal.SIGKILL)
        self._requests.append((key, request))
        self.unfinished += request.n

    def step(self) -> list[tuple[str, list[Sample]]]:
        """One request whole."""
        key, request = self._requests.popleft()
        time.sleep(self.seconds_per_prompt)
        self.running, self.unfinished = request.n, self.unfinished - request.n
        return [(key, self.draw(request))]

    def draw(self, request: Request) -> list[Sample]:
        """Samples that the request alone decides, by its seed: in whichever process, beside whichever others."""
        generator = random.Random(request.seed)
        return [self._draw(generator) for _ in range(request.n)]

    def _draw(self, generator: random.Random) -> Sample:
        ids = generator.choices(self.ids, k=LENGTH)
        text = "".join(f" {self.words[i]}" for i in ids)
        return Sample([*ids, self.tokenizer.eos_token_id], text, "stop", -1.0, None)


class ScorerStub:
    """Gives a continuation minus its length; for scale."""

    layout = "packed"

    def __init__(self, model: str, **_: Any):
        pass

    def score(self, groups: Sequence[Any]) -> list[list[float]]:
        return [[-float(len(c)) for c in group.continuations] for group in groups]

    def score_and_rank(
        self, groups: Sequence[Any], ranked: Sequence[bool]
    ) -> tuple[list[list[float]], list[int | None]]:
        return self.score(groups), [0 if asked else None for asked in ranked]


class SignalStub(Signal):
    """A similarity that costs nothing; for scale, and for kills, where each start of a worker counts."""

    name = "embedding"

    def __init__(self, options: Any, reference: Reference):
        pass

    @classmethod
    def identity(cls, options: Any, reference: Reference) -> dict[str, Any]:
        return {}

    def add(self, groups: Sequence[Group]) -> None:
        for group in groups:
            for candidate in group.negatives:
                candidate.similarity.setdefault(self.name, 1 / len(candidate.ids))


def signals_stub(options: Mapping[str, Any], reference: Reference) -> list[Signal]:
    return [SignalStub(of_signal, reference) for of_signal in options.values()]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """`python -m tests.support.stubs`: negatives_gen with a stub engine and signal; with --stub-scorer all is one.

    `extend SET` as its verb: with a stub engine alone.
    """
    argv = sys.argv[1:] if argv is None else argv
    words = [word for word in argv if word != "--stub-scorer"]
    extended = words[1] if words[:1] == ["extend"] else None
    components = Components(engine=EngineStub, signals=signals_stub)
    if extended:
        components = Components(engine=EngineStub)
    elif "--stub-scorer" in argv:
        components = Components(engine=EngineStub, scorer=ScorerStub, signals=signals_stub)
    config: Any = load_config(
        ExtendConfig if extended else GenerateConfig, words[2:] if extended else words, command="tests.support.stubs"
    )
    start_logging(config.log_format)
    made = extend(extended, config, components) if extended else generate(config, components)
    print_outcome(made, config.out, config.log_format)


if __name__ == "__main__":
    # By its name: the classes are pickled for the workers, who know no __main__ of ours.
    from tests.support.stubs import main as imported

    sys.exit(imported())
