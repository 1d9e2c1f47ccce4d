"""The paper's tables (arXiv 2502.16433), to stand beside rows of the same set-up. Imports nothing heavy.

Tables are numbered as in the ACL submission. Its Table 3 lost a number on the way to us, and the decoding of Tables 1
and 5 is not stated: Table 1 repeats a number of Table 4, whose answers are greedy, and greedy is what the text calls
the default. MAUVE on Wikidump is arXiv's Table 4, whose row is labelled a win rate; the text around it says MAUVE.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, did_you_mean
from evaluation.metrics import known
from evaluation.metrics.base import TRUTH

# What the tables measure, in the paper's words.
WIN_RATE, MAUVE = "win rate", "MAUVE"
PROMPTS = 1000
DATA = {"dolly": "databricks-dolly-15k", "continuation": "Wikidump"}
# As `data.models.architecture` tells them: sizes and shape, not the weights, which training changes.
BASE_MODELS = {
    "GPT2-XL": {"model_type": "gpt2", "hidden_size": 1600, "layers": 48},
    "OpenLLaMA-3B": {"model_type": "llama", "hidden_size": 3200, "layers": 26},
}
# Words of a model's name that say nothing: "mixnr-alpha-0.5", "mixnr-a0.5" and "mixnr-0.5" are one row.
FILLERS = {"alpha", "a", "steps", "step"}


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: in the ACL submission.
        task: a name of `data.sources.tasks`.
        base_model: that was trained, a key of BASE_MODELS.
        values: what the paper measures and decoding -> row -> value; rows are spelled as `row_name` does.
        same: other spellings of rows.
    """

    number: int
    task: str
    base_model: str
    values: Mapping[tuple[str, str], Mapping[str, float]]
    same: Mapping[str, str]

    def value(self, model: str, decoding: str, measured: str, against: str) -> float | None:
        """The paper's number for a measurement, None if the table has none of that row, decoding, measure and opponent.

        It may stand beside the measurement only if `mismatches` of the evaluation finds nothing.

        Args:
            measured: what the paper calls it, `Column.paper`.
            against: the opponent; "" where there is none. The paper compares answers with the ground truths alone.
        """
        if against not in ("", TRUTH):
            return None
        name = row_name(model)
        return self.values.get((measured, decoding), {}).get(self.same.get(name, name))


def row_name(model: str) -> str:
    """A model's name as tables spell rows: lower-case words and numbers, "MixNR-alpha-0.50" as "mixnr 0.5"."""
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)?", model.lower())
    return " ".join(f"{float(w):g}" if w[0].isdigit() else w for w in words if w not in FILLERS)


def _ensembles(name: str, by_alpha: Mapping[str, float]) -> dict[str, float]:
    """Rows "mixnr 0", "mixnr 0.1" ..."""
    return {f"{name} {alpha}": value for alpha, value in by_alpha.items()}


TABLES = {
    "table1": PaperTable(
        1,
        "dolly",
        "OpenLLaMA-3B",
        {(WIN_RATE, "greedy"): {"mle": 0.505, "bnr": 0.599, "mnr": 0.567, "tnr": 0.601}},
        {},
    ),
    "table2": PaperTable(
        2,
        "dolly",
        "GPT2-XL",
        {
            (WIN_RATE, "greedy"): {
                "mle": 0.471,
                "pss": 0.086,
                "dpo": 0.383,
                "anr": 0.506,
                **_ensembles("mixnr", {"0": 0.476, "0.5": 0.479, "0.7": 0.487, "0.9": 0.485}),
            }
        },
        {"mixnr": "mixnr 0"},
    ),
    "table3": PaperTable(
        3,
        "dolly",
        "OpenLLaMA-3B",
        {
            (WIN_RATE, "topk50"): {"mixnr": 0.591, "mle": 0.497},
            (WIN_RATE, "topk50-p0.7"): {"mixnr": 0.611, "mle": 0.517},
            (WIN_RATE, "beam2"): {"mixnr": 0.607, "mle": 0.532},
            (WIN_RATE, "beam4"): {"mle": 0.514},
        },
        {"mixnr 0": "mixnr"},
    ),
    "table4": PaperTable(
        4,
        "dolly",
        "OpenLLaMA-3B",
        {
            (WIN_RATE, "greedy"): {
                "mle 200": 0.505,
                "pss": 0.270,
                "dpo": 0.555,
                "anr": 0.643,
                "an": 0.560,
                "mle 1000": 0.522,
                **_ensembles(
                    "mixnr", {"0": 0.608, "0.1": 0.620, "0.3": 0.614, "0.5": 0.610, "0.7": 0.601, "0.9": 0.550}
                ),
                "mixn": 0.576,
            }
        },
        # All but the first MLE, ANR and AN are trained for 1,000 steps.
        {"mle": "mle 1000", "mixnr": "mixnr 0"},
    ),
    "table5": PaperTable(
        5,
        "continuation",
        "OpenLLaMA-3B",
        {
            (WIN_RATE, "greedy"): {
                "mle": 0.508,
                **_ensembles("bnr", {"0": 0.455, "0.5": 0.505, "0.7": 0.500, "0.9": 0.538}),
            },
            (MAUVE, "greedy"): {
                "mle": 0.524,
                **_ensembles("bnr", {"0": 0.610, "0.1": 0.627, "0.3": 0.673, "0.5": 0.645, "0.7": 0.651, "0.9": 0.668}),
            },
        },
        {"bnr": "bnr 0"},
    ),
}


def paper_table(key: str) -> PaperTable:
    """The table that `--paper` names. Raises UserError."""
    if key not in TABLES:
        raise UserError(f"unknown --paper '{key}'.{did_you_mean(key, TABLES)} Known: {', '.join(TABLES)}.")
    return TABLES[key]


def mismatches(table: PaperTable, job: Mapping[str, Any]) -> list[str]:
    """What an evaluation must share with a table, but does not: then none of its numbers stand beside ours.

    Args:
        job: of the report.
    """
    data = job.get("data") or {}
    found = []
    theirs = BASE_MODELS[table.base_model]
    others = [m.get("architecture") for m in (job.get("models") or {}).values() if m.get("architecture") != theirs]
    if others or not job.get("models"):
        ours = _spoken(others[0]) if others and others[0] else "not recorded"
        found.append(f"base model {table.base_model} ({_spoken(theirs)}) there, {ours} here")
    for what, theirs in (("task", table.task), ("split", "test")):
        if data.get(what) != theirs:
            found.append(f"{what} {theirs} there, {data.get(what) or 'not recorded'} here")
    if any(data.get(what) for what in ("test_share", "test_dataset", "own_splits")):
        found.append("the half held out there, other rows here")
    if _bare(DATA[table.task]) not in _bare(str(data.get("name"))):
        found.append(f"data {DATA[table.task]} there, {data.get('name') or 'not recorded'} here")
    return found


def differences(table: PaperTable, job: Mapping[str, Any]) -> list[str]:
    """What else an evaluation does not share with the paper's table, as far as its record tells: to be said beside it.

    Args:
        job: of the report.
    """
    found = []
    measured = (job.get("data") or {}).get("measured")
    if measured != PROMPTS:
        found.append(f"{PROMPTS:,} test prompts there, {_number(measured)} here")
    return [*found, *(said for metric in known() for said in metric.unlike_paper(job, table.task))]


def _spoken(architecture: Mapping[str, Any]) -> str:
    width, layers = architecture.get("hidden_size"), architecture.get("layers")
    return f"{architecture.get('model_type')}, hidden size {width}, {layers} layers"


def _number(count: Any) -> str:
    return f"{count:,}" if isinstance(count, int) else "an unrecorded number"


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
