"""What a data source is called: one of the embedded examples, files, or a hub id, and which part of it is meant.

`ORG/NAME/CONFIG` is a configuration of a hub data set, and `NAME:SPLIT` a split under the source's own name for it:
`allenai/c4/en`, `HuggingFaceH4/ultrachat_200k:train_sft`. What exists here under the whole name is that.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from data.command.options import ROOT_VARIABLE, resolve_path
from data.sources.data_files import ENDINGS, looks_local

SPLIT = re.compile(r"\w+([.-]\w+)*")


@dataclass(frozen=True)
class SourceName:
    """The parts of a name.

    Attributes:
        where: an embedded example, a local path or glob, or a hub id.
        config: of a hub data set, or None.
        split: the one split that is read, or None.
    """

    where: str
    config: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, written: str) -> "SourceName":
        """The parts of a name that a user wrote."""
        where, config, split = written, None, None
        head, colon, tail = written.rpartition(":")
        if colon and head and SPLIT.fullmatch(tail) and not tail.endswith(ENDINGS) and not _is_here(written):
            where, split = head, tail
        if where.count("/") == 2 and not looks_local(where) and not _is_here(where):
            where, _, config = where.rpartition("/")
        return cls(where, config, split)

    def located(self, locate: Callable[[str], str]) -> str:
        """The whole name with another word for where it is."""
        config = "" if self.config is None else f"/{self.config}"
        return f"{locate(self.where)}{config}{'' if self.split is None else f':{self.split}'}"


def _is_here(name: str) -> bool:
    """Whether files have this name, from the current directory or from the root of relative paths on."""
    if os.path.exists(os.path.expanduser(name)):
        return True
    return bool(os.environ.get(ROOT_VARIABLE)) and os.path.exists(resolve_path(name))
