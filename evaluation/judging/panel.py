"""Several chat models as one judge: each judges every pair, and the majority decides."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evaluation.judging.base import SAME, Asked, Comparison, Outcome
from evaluation.judging.chat_judge import ChatJudge

WORDS = {1.0: "win", 0.5: "tie", 0.0: "loss", None: "not judged"}
NOBODY = "no judge of the panel gave a verdict that can be read"
# Of what judges took, what sums up.
SUMMED = ("verdicts", "input_tokens", "output_tokens", "without_tokens", "unparsed", "refused")


class Panel:
    """Asks its judges one after the other. Their budgets share the caps.

    Args:
        judges: two or more, of different models behind one server.
    """

    def __init__(self, judges: Sequence[ChatJudge]):
        self.judges = judges
        self.members = [judge.model for judge in judges]

    def drop(self) -> None:
        for judge in self.judges:
            judge.drop()

    def look_at(self, prompts: Sequence[Asked]) -> None:
        """Do nothing, see `ChatJudge.look_at`."""

    def identity(self) -> dict[str, Any]:
        """What one of them is, with the models of all."""
        return {**self.judges[0].identity(), "model": self.members}

    def spent(self) -> dict[str, Any]:
        """`ChatJudge.spent` of all judges together, and under `judges` of each."""
        each = {judge.model: judge.spent() for judge in self.judges}
        all_ = list(each.values())
        return {
            **{key: sum(spent[key] for spent in all_) for key in SUMMED},
            "cost": _total([spent["cost"] for spent in all_]),
            "base_urls": sorted({url for spent in all_ for url in spent["base_urls"]}),
            "this_run": {key: _total([spent["this_run"][key] for spent in all_]) for key in all_[0]["this_run"]},
            "judges": each,
        }

    def judge(self, comparisons: Sequence[Comparison]) -> list[Outcome]:
        votes = [judge.judge(comparisons) for judge in self.judges]
        return [majority(self.members, some) for some in zip(*votes, strict=True)]


def majority(members: Sequence[str], votes: Sequence[Outcome]) -> Outcome:
    """A panel's outcome: what more judges say than anything else, win, tie or loss; a tie where two lead.

    Who has not judged the pair has no vote; it is not judged where nobody has one.
    """
    if all(vote == SAME for vote in votes):
        return SAME
    counted = Counter(vote.score for vote in votes if vote.score is not None).most_common()
    if not counted:
        return Outcome(None, reason=NOBODY, votes=tuple(votes))
    is_even = len(counted) > 1 and counted[0][1] == counted[1][1]
    said = ", ".join(f"{name}: {WORDS[vote.score]}" for name, vote in zip(members, votes, strict=True))
    return Outcome(0.5 if is_even else counted[0][0], reason=said, votes=tuple(votes))


def _total(numbers: Sequence[float | None]) -> float | None:
    """The sum; None where a number is not known, as costs are without prices."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
