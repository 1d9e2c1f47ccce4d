"""Whether a source has what is read of it: what is in none of its rows shows the wrong task, not bad rows."""

from typing import Any

from data.command.cleaning import shown
from data.command.errors import UserError
from data.sources.json_lines import Unreadable
from data.sources.readers import Part
from data.sources.row_paths import NOWHERE, Path
from data.sources.row_reader import RowReader
from data.sources.tasks import TASKS


class ColumnCheck:
    """Looks at the rows of one part of a source and refuses a part without what is read of its rows.

    Attributes:
        rows: how many it has seen.
    """

    def __init__(self, part: Part, reader: RowReader):
        self.dataset, self.reader, self.places = part.dataset, reader, reader.needed
        self.spoken = f"{'the test split of ' if part.is_own_test else ''}data set '{part.dataset}'"
        self.way_out = " Or hold out rows of its train split instead: --test_share." if part.is_own_test else ""
        self.rows, self.fits, self.found = 0, False, set[Path]()
        self.response, self.has_response = reader.own_response, None
        self.first: Any = None
        self.unreadable: Unreadable | None = None

    def see(self, row: Any) -> None:
        """Take one row, whatever it holds. Raises UserError if it has the response's column and others have not."""
        self.rows += 1
        if isinstance(row, Unreadable):
            self.unreadable = self.unreadable or row
            return
        if self.response:
            has = self.response in row
            if has is not (has if self.has_response is None else self.has_response):
                raise UserError(
                    f"{self.spoken}: some rows have a column '{self.response}' and some have none, which leaves open "
                    f"whether the best-scored candidate is the ground truth. Give --columns {self.response}="
                    f"{self.response}, which rejects rows without it, or remove the column."
                )
            self.has_response = has
        if not self.fits:
            self.first = list(row) if self.first is None else self.first
            self.found.update(place for place in self.places if place.find(row) is not NOWHERE)
            self.fits = len(self.found) == len(self.places)

    def finish(self) -> None:
        """Raise UserError if something was in no row."""
        if self.fits:
            return
        if not self.rows:
            raise UserError(f"{self.spoken} has no rows.{self.way_out}")
        if self.first is None:
            assert self.unreadable is not None  # every row is one or the other
            raise UserError(
                f"cannot read '{self.dataset}' as jsonl: no line of it is a JSON object (the first is "
                f"{self.unreadable.reason}: {self.unreadable.detail}).{self.way_out}"
            )
        lacking = next(place for place in self.places if place not in self.found)
        name = next((name for name, place in self.reader.places.items() if place == lacking), None)
        if name is not None:
            needs = f"of --columns {name}={lacking.text}"
            advice = "Correct --columns: a column, or a path such as answers[].text, with one [] at most."
        elif lacking.text in self.reader.task.columns:
            needs = f"which task '{self.reader.name}' needs"
            others = [n for n, task in TASKS.items() if n != self.reader.name and set(task.columns) <= set(self.first)]
            choice = f"--task {' or '.join(others)} reads such rows" if others else "Choose another --task"
            advice = f"{choice}, or say which column it is: --columns {lacking.text}=COLUMN."
        else:
            needs, advice = "which --prompt_template writes", "Correct the template."
        raise UserError(
            f"{self.spoken} has no column '{lacking.text}', {needs}; it has: {', '.join(map(shown, self.first))}. "
            f"{advice}{self.way_out}"
        )
