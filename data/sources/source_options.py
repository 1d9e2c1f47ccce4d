"""The options of every command that reads a data source, beside `--dataset` and `--split`: one definition of them."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError
from data.command.options import option
from data.sources.data_files import FORMATS
from data.sources.examples import Source, open_source
from data.sources.readers import EMBEDDED
from data.sources.row_reader import CANDIDATES, SCORES, RowReader
from data.sources.source_name import SourceName
from data.sources.splits import TEST_SHARE, check_held_out, require_split
from data.sources.tasks import TASK_HELP

log = logging.getLogger(__name__)

DATASET_HELP = (
    f"{' or '.join(map(repr, EMBEDDED))} (the embedded examples); a local {'/'.join(FORMATS)}, also .gz or .zst, a "
    "glob, a folder of these or of datasets.save_to_disk; or a hub id, ORG/NAME or ORG/NAME/CONFIG; behind a folder or "
    "an id, :SPLIT is one of its own splits, e.g. :train_sft"
)


@dataclass
class SourceOptions:
    """How the rows of a data source are read and which of them are held out."""

    task: str = option("prompt-completion", TASK_HELP, metavar="NAME")
    columns: list[str] = option(
        [],
        "where what the task reads lies in the data, e.g. prompt=instruction,completion=answers.text; also "
        "candidates=answers[].text (other responses of a row, or one such as candidates=rejected) and "
        "scores=answers[].score (-answers[].rank: less is better), of which the best is the ground truth where the "
        "data have no column of it; response=chosen is that of tasks conversational and sharegpt",
        metavar="NAME=COLUMN",
    )
    prompt_template: str | None = option(
        None,
        "writes the prompt: a text with {column}s, or a .jinja/.j2 file; what a person asked stays the task's prompt "
        "column, if the data have it",
        metavar="TEXT",
    )
    test_share: float | None = option(
        None,
        f"share of the rows that is held out, by their content alone (default: the source's own test split, else "
        f"{TEST_SHARE})",
        metavar="SHARE",
    )
    test_dataset: str | None = option(
        None,
        "another data source, or NAME:SPLIT, whose rows are those that are held out; of one with splits those of its "
        "test split",
        metavar="PATH",
    )

    def check_source(self, split: str, reads: Collection[str] = ()) -> RowReader:
        """How rows are read.

        Args:
            reads: names of `--columns` that are read beside the task's.

        Raises:
            UserError: an unknown task, column or split, options that are at odds, or candidates that nobody reads.
        """
        reader = RowReader.of(self.task, self.columns, self.prompt_template)
        require_split(split)
        check_held_out(self.test_share, self.test_dataset)
        if CANDIDATES in reader.places and CANDIDATES not in reads and not reader.chooses_truth:
            why = f"without {SCORES}=..." if SCORES not in reader.places else f"beside {reader.task.response}=..."
            raise UserError(
                f"--columns {CANDIDATES}=... would change nothing: {why} nothing that is chosen reads it. Leave it out."
            )
        return reader

    def open_source(
        self,
        dataset: str,
        split: str,
        limit: int | None = None,
        streaming: bool = False,
        *,
        locate: Callable[[str], str] = str,
        again: bool = False,
    ) -> Source:
        """The examples of a split, see `data.sources.examples.open_source`; the log says how many rows are held out.

        Args:
            again: whether this command has opened it before, of another split: the log has its line.
            locate: makes of a path or hub id that a user wrote the one to open.
        """

        def located(name: str) -> str:
            return SourceName.of(name).located(locate)

        source = open_source(
            located(dataset),
            self.task,
            split,
            limit,
            streaming,
            columns=self.columns,
            prompt_template=self.prompt_template,
            test_share=self.test_share,
            test_dataset=None if self.test_dataset is None else located(self.test_dataset),
        )
        if not again:
            log.info("%s: %s", dataset, source.summary)
        return source

    def describe_source(self, source: Source) -> dict[str, Any]:
        """What a manifest or a report says of how rows are read and split: nothing that is as it always was."""
        found = RowReader.of(self.task, self.columns, self.prompt_template).describe()
        if source.lists_sha256 is not None:
            found["candidates_sha256"] = source.lists_sha256
        if self.test_share not in (None, TEST_SHARE):
            found["test_share"] = self.test_share
        if self.test_dataset is not None:
            found["test_dataset"] = self.test_dataset
        elif source.own_splits:
            found["own_splits"] = True
        if source.halves_sha256 is not None:
            found["halves_sha256"] = source.halves_sha256
        return found
