"""What people say of pairs of answers: JSON Lines in, pairs with one label each out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.command.errors import UserError
from data.command.options import require_local, resolve_path
from data.shape import parse_shaped
from evaluation.judging.base import Comparison

A, B, TIE = "a", "b", "tie"
LABELS = (A, B, TIE)
SHAPE = dict.fromkeys(("prompt", "answer_a", "answer_b", "label"), str)
FORMAT = '{"prompt": "...", "answer_a": "...", "answer_b": "...", "label": "a"}'


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to a prompt, and which of them people prefer.

    Attributes:
        comparison: answer a is its answer, b the other one.
        label: "a" or "b", which more people name than anything else, else "tie".
        people: labels that it is made of.
    """

    comparison: Comparison
    label: str
    people: int

    @property
    def longer(self) -> str:
        """The longer answer in characters, "a" or "b"; "" where both are as long. White space at the ends is not."""
        a, b = len(self.comparison.answer.strip()), len(self.comparison.other.strip())
        return A if a > b else B if b > a else ""


@dataclass(frozen=True)
class Labels:
    """The pairs of a file.

    Attributes:
        pairs: each once, in the order of the file.
        rows: lines of the file that hold a label.
        same: pairs whose two answers are the same text, of which nothing can be asked; left out.
    """

    pairs: list[LabelledPair]
    rows: int
    same: int


def read_labels(path: str) -> Labels:
    """The labels of a JSON Lines file. Several of one pair, in either order of its answers, are people's votes on it.

    Raises:
        UserError: the file cannot be read, a line is no label, or no pair can be asked about.
    """
    require_local(path, "--labels")
    try:
        content = Path(resolve_path(path)).read_bytes()
    except OSError as error:
        raise UserError(f"--labels '{path}' cannot be read: {error.strerror}. Give a JSON Lines file.") from error
    votes: dict[tuple[str, str, str], list[str]] = {}
    rows = 0
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        prompt, a, b, label = _label(line, f"--labels '{path}', line {number}")
        rows += 1
        if (prompt, b, a) in votes:
            a, b, label = b, a, {A: B, B: A, TIE: TIE}[label]
        votes.setdefault((prompt, a, b), []).append(label)
    asked = {pair: given for pair, given in votes.items() if pair[1].strip() != pair[2].strip()}
    if not asked:
        raise UserError(f"--labels '{path}' has no pair of two different answers. Give lines such as {FORMAT}.")
    pairs = [
        LabelledPair(Comparison(str(number), *pair), most(given), len(given))
        for number, (pair, given) in enumerate(asked.items())
    ]
    return Labels(pairs, rows, len(votes) - len(asked))


def most(labels: Iterable[str]) -> str:
    """What more of some labels say than anything else, "tie" where two lead."""
    counted = Counter(labels).most_common()
    return TIE if len(counted) > 1 and counted[0][1] == counted[1][1] else counted[0][0]


def _label(line: bytes, where: str) -> tuple[str, str, str, str]:
    try:
        row = parse_shaped(line, SHAPE)
    except ValueError as error:
        raise UserError(f"{where}: {error}. A line reads {FORMAT}.") from error
    if row["label"] not in LABELS:
        raise UserError(f"{where}: label is {row['label'][:40]!r}, not one of {', '.join(LABELS)}.")
    return row["prompt"], row["answer_a"], row["answer_b"], row["label"]
