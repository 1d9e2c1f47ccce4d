"""Given: responses that the rows of the data source list beside the ground truth; nothing is generated."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from data.command.options import option
from data.command.values import require_positive
from data.schema import Candidate, Group
from data.sources.row_reader import CANDIDATES
from data.tokens import marks_of, text_behind
from negatives_gen.strategies.base import GroupStrategy, Tools


@dataclass(frozen=True)
class Options:
    """How few there may be."""

    given_min: int | None = option(None, "keep rows that list so many or more (default: as many as are asked for)")

    def check(self) -> None:
        """Raise UserError for a value out of range."""
        require_positive(self, "given_min")


class Given(GroupStrategy):
    """Takes the row's other responses in the row's order, each in tokens as a ground truth of its prompt would be.

    Passed over are those with the text or the tokens of the ground truth or of an earlier one (a tokenizer that
    normalises gives two texts the same tokens), and those that have no tokens: too long, or with a special token in
    their text.
    """

    name = "given"
    summary = "given: other responses that the rows list (--columns candidates=...)"
    reads = (CANDIDATES,)
    Options: ClassVar = Options

    def settings(self, options: Any) -> dict[str, Any]:
        settings = super().settings(options)
        least = settings.pop("given_min")
        return settings if least is None else {**settings, "least": least}

    def candidates(self, group: Group, settings: dict[str, Any], tools: Tools) -> Iterator[Candidate]:
        ends = marks_of(tools.tokenizer).ends
        taken = {tuple(group.response_ids), *(tuple(c.ids) for c in group.negatives if c.strategy == self.name)}
        for alternative in group.alternatives or ():
            if not alternative.problem and tuple(alternative.ids) not in taken:
                taken.add(tuple(alternative.ids))
                text = text_behind(tools.tokenizer, group.prompt_ids, alternative.ids, ends)
                yield Candidate(self.name, list(alternative.ids), text)

    def left_out(self, group: Group) -> Counter[str]:
        """Reason -> candidates that cannot be used; a text that repeats is none, nor one beyond those asked for."""
        return Counter(alternative.problem for alternative in group.alternatives or () if alternative.problem)

    def why_scarce(self, group: Group) -> str:
        listed = group.alternatives or []
        said = "".join(f", {number} {problem}" for problem, number in self.left_out(group).most_common())
        return f"the row lists {len(listed)}{said}; texts that repeat are passed over"


STRATEGY = Given()
