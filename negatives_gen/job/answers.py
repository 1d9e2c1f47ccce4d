"""Answers of an API, which cost money, kept until their shard is finished: `_job/answers/SHARD-PART.json`.

A shard may want thousands of them, and a server that goes away, a cap or a kill ends the job in its middle. The next
run asks for what is missing alone.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data.chat.client import Answer
from data.set_directory import ANSWERS, SetDirectory
from data.shape import Each, parse_shaped

WRITE_EVERY = 5.0  # seconds: what a kill may cost
ANSWERS_SHAPE = Each({"text": str, "finish_reason": str})


class KeptAnswers:
    """What an API answered to the questions of one shard, in this run and in earlier ones.

    Args:
        directory: owned by this run.
        index: of the shard.
    """

    def __init__(self, directory: SetDirectory, index: int):
        self.directory, self.index = directory, index
        self.known: dict[str, Answer] = {}
        self._new: dict[str, Answer] = {}
        self._written = time.monotonic()
        parts = re.compile(rf"{index:05d}-(\d+)\.json")
        found = [match for match in map(parts.fullmatch, directory.folder.names(ANSWERS)) if match]
        self._next = 1 + max((int(match.group(1)) for match in found), default=0)
        for match in found:
            content = directory.folder.read_if_there(f"{ANSWERS}/{match.group()}")
            try:
                answers = parse_shaped(content or b"", ANSWERS_SHAPE)
            except ValueError:  # power was lost while it was written
                continue
            self.known |= {key: Answer(answer["text"], answer["finish_reason"]) for key, answer in answers.items()}

    def find(self, key: str) -> Answer | None:
        """The answer to a question.

        Args:
            key: names all that decides it.
        """
        return self.known.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer; it is on the disk WRITE_EVERY seconds later at most."""
        self.known[key] = self._new[key] = answer
        if time.monotonic() - self._written >= WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write what is new. Raises TakenOver if another run owns the directory by now."""
        if self._new:
            self.directory.check()
            answers = {key: {"text": a.text, "finish_reason": a.finish_reason} for key, a in self._new.items()}
            self.directory.folder.write(f"{ANSWERS}/{self.index:05d}-{self._next}.json", json.dumps(answers).encode())
            self._next, self._new = self._next + 1, {}
        self._written = time.monotonic()


@contextmanager
def kept_answers(directory: SetDirectory, index: int) -> Iterator[KeptAnswers | None]:
    """A shard's answers, written also where the block fails; None in a directory that nobody owns, as of a plan."""
    if directory.claim is None:
        yield None
        return
    answers = KeptAnswers(directory, index)
    try:
        yield answers
    finally:
        answers.write()
