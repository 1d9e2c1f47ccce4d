"""A finished report on the hub: a data set, whose page is the report."""

from typing import TYPE_CHECKING

from data.hub import DATASET, push_files
from evaluation.report import FILES

if TYPE_CHECKING:
    from data.storage import Folder

# A hub has models, data sets and Spaces. A report is files that are kept and read; a Space would be an app that runs.
FRONT = """---
pretty_name: Evaluation report
tags:
- evaluation
- contrastive-preference-optimization
---

"""


def publish_report(folder: "Folder", repo_id: str) -> None:
    """Upload a report's files as a data set of the hub, report.md as its card too; nothing of the store.

    Raises:
        UserError: the hub refuses. The report stays where it is.
    """
    files = {name: content for name in FILES if (content := folder.read_if_there(name)) is not None}
    card = {"README.md": FRONT.encode() + files["report.md"]}
    push_files({**card, **files}, repo_id, DATASET, named=folder.path)
