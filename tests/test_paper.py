"""The paper's numbers, checked against what its text says of them, and when they may stand beside ours."""

import pytest

from data.errors import UserError
from evaluation.paper import TABLES, differences, paper_table, row_name


def value(table: str, model: str, decoding: str = "greedy", metric: str = "win_rate") -> float:
    found = TABLES[table]
    number = found.value(found.task, model, decoding, metric, "truth" if metric == "win_rate" else "")
    assert number is not None
    return number


def gain(table: str, better: str, worse: str, decoding: str = "greedy") -> float:
    """In points."""
    return round(100 * (value(table, better, decoding) - value(table, worse, decoding)), 1)


def test_gains_are_those_of_the_papers_text() -> None:
    assert gain("table4", "anr", "mle-200") == 13.8  # "CPO+ANR has a 13.8% higher win rate than the MLE baseline"
    assert gain("table4", "mixnr-0.1", "mle-1000") == 9.8  # "and CPO+MixNR has a 9.8% higher win rate"
    assert gain("table2", "anr", "mle") == 3.5  # "CPO+ANR has a 3.5% higher win rate" with GPT2-XL
    assert gain("table5", "bnr-0.9", "mle") == 3.0  # "outperforms the MLE baseline by 3%"
    # "In all settings, CPO has consistently demonstrated superior performance over MLE"; beam 4 is lost.
    assert [gain("table3", "mixnr", "mle", d) for d in ("topk50", "topk50-p0.7", "beam2")] == [9.4, 9.4, 7.5]
    assert TABLES["table3"].value("dolly", "mixnr", "beam4", "win_rate", "truth") is None
    # "The effects of BNR and TNR are similar and they perform slightly better than MNR"; MLE is Table 4's first.
    assert value("table1", "tnr") > value("table1", "bnr") > value("table1", "mnr") > value("table1", "mle")
    assert value("table1", "mle") == value("table4", "mle-200")


def test_which_alpha_is_best() -> None:
    """Few MLE weights for OpenLLaMA on Dolly, many for GPT2-XL and on Wikidump."""
    best = {}
    for table, row in (("table2", "mixnr"), ("table4", "mixnr"), ("table5", "bnr")):
        rows = TABLES[table].values["win_rate", "greedy"]
        ensembles = {name: v for name, v in rows.items() if name.startswith(f"{row} ")}
        best[table] = max(ensembles, key=lambda name, values=ensembles: values[name])
    assert best == {"table2": "mixnr 0.7", "table4": "mixnr 0.1", "table5": "bnr 0.9"}
    mauve = TABLES["table5"].values["mauve", "greedy"]
    assert max(mauve, key=lambda name: mauve[name]) == "bnr 0.3"


def test_every_row_of_the_tables() -> None:
    rows = {key: {d: len(v) for (m, d), v in table.values.items() if m == "win_rate"} for key, table in TABLES.items()}
    assert rows == {
        "table1": {"greedy": 4},
        "table2": {"greedy": 8},
        "table3": {"topk50": 2, "topk50-p0.7": 2, "beam2": 2, "beam4": 1},
        "table4": {"greedy": 13},
        "table5": {"greedy": 5},
    }


def test_names_of_rows() -> None:
    for name in ("mixnr-alpha-0.5", "MixNR a0.50", "mixnr_0.5", "MIXNR, alpha = .5".replace(" .5", " 0.5")):
        assert row_name(name) == "mixnr 0.5"
    assert row_name("MLE (200 steps)") == "mle 200"
    assert value("table4", "mixnr") == value("table4", "mixnr-0") == value("table4", "alpha-0") == 0.608
    assert value("table5", "alpha-0.9") == 0.538
    assert value("table4", "mle") == 0.522


@pytest.mark.parametrize(
    ("task", "model", "decoding", "metric", "against"),
    [
        ("continuation", "anr", "greedy", "win_rate", "truth"),  # another task
        ("dolly", "anr", "topk50", "win_rate", "truth"),  # another decoding
        ("dolly", "anr", "greedy", "win_rate", "mle"),  # another opponent
        ("dolly", "anr", "greedy", "win_rate_length_controlled", "truth"),  # another metric
        ("dolly", "anr", "greedy", "mauve", ""),
        ("dolly", "anr-small", "greedy", "win_rate", "truth"),  # another row
        ("dolly", "alpha-0.2", "greedy", "win_rate", "truth"),
        ("dolly", "", "greedy", "win_rate", "truth"),
    ],
)
def test_no_number_for_another_set_up(task: str, model: str, decoding: str, metric: str, against: str) -> None:
    assert TABLES["table4"].value(task, model, decoding, metric, against) is None
    assert TABLES["table4"].value("dolly", "anr", "greedy", "win_rate", "truth") == 0.643


def test_an_unknown_table_is_refused() -> None:
    assert paper_table("table4").number == 4
    with pytest.raises(UserError, match=r"unknown --paper 'tabel4'\. Did you mean 'table4'\? Known: table1, "):
        paper_table("tabel4")


def test_what_differs_from_the_paper() -> None:
    same = {
        "base_model": "openlm-research/open_llama-3b".replace("open_llama", "open-llama"),
        "data": {"name": "data/databricks-dolly-15k.jsonl", "used": 1000},
        "judge": {"model": "gpt-3.5-turbo", "orders": "paper"},
    }
    assert differences(TABLES["table4"], same) == []
    other = {"data": {"name": "facts", "used": 12}, "judge": {"model": "gpt-4o", "orders": "both"}}
    assert differences(TABLES["table4"], other) == [
        "base model OpenLLaMA-3B there, not recorded here",
        "data databricks-dolly-15k there, facts here",
        "1,000 test prompts there, 12 here",
        "judge GPT-3.5 there, gpt-4o here",
        "one order of the two answers there, both here",
    ]
    assert differences(TABLES["table2"], {**same, "base_model": "gpt2"}) == ["base model GPT2-XL there, gpt2 here"]
    assert len(differences(TABLES["table4"], {})) == 3  # nothing recorded: no judge, so nothing of it either
