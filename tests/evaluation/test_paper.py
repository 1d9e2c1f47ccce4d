"""The paper's numbers, checked against what its text says of them, and when they may stand beside ours."""

from typing import Any

import pytest

from data.command.errors import UserError
from evaluation.paper import BASE_MODELS, TABLES, differences, mismatches, paper_table, row_name

# The paper's tables, copied from the paper and not from evaluation.paper: (table, metric, decoding) -> row -> number.
PRINTED = {
    ("table1", "win rate", "greedy"): {"mle": 0.505, "bnr": 0.599, "mnr": 0.567, "tnr": 0.601},
    ("table2", "win rate", "greedy"): {
        "mle": 0.471, "pss": 0.086, "dpo": 0.383, "anr": 0.506,
        "mixnr 0": 0.476, "mixnr 0.5": 0.479, "mixnr 0.7": 0.487, "mixnr 0.9": 0.485,
    },
    ("table3", "win rate", "topk50"): {"mixnr": 0.591, "mle": 0.497},
    ("table3", "win rate", "topk50-p0.7"): {"mixnr": 0.611, "mle": 0.517},
    ("table3", "win rate", "beam2"): {"mixnr": 0.607, "mle": 0.532},
    ("table3", "win rate", "beam4"): {"mle": 0.514},
    ("table4", "win rate", "greedy"): {
        "mle 200": 0.505, "pss": 0.270, "dpo": 0.555, "anr": 0.643, "an": 0.560, "mle 1000": 0.522, "mixn": 0.576,
        "mixnr 0": 0.608, "mixnr 0.1": 0.620, "mixnr 0.3": 0.614,
        "mixnr 0.5": 0.610, "mixnr 0.7": 0.601, "mixnr 0.9": 0.550,
    },
    ("table5", "win rate", "greedy"): {
        "mle": 0.508, "bnr 0": 0.455, "bnr 0.5": 0.505, "bnr 0.7": 0.500, "bnr 0.9": 0.538,
    },
    ("table5", "MAUVE", "greedy"): {
        "mle": 0.524, "bnr 0": 0.610, "bnr 0.1": 0.627, "bnr 0.3": 0.673,
        "bnr 0.5": 0.645, "bnr 0.7": 0.651, "bnr 0.9": 0.668,
    },
}  # fmt: skip


def value(table: str, model: str, decoding: str = "greedy", metric: str = "win rate") -> float:
    found = TABLES[table]
    number = found.value(model, decoding, metric, "truth" if metric == "win rate" else "")
    assert number is not None
    return number


def gain(table: str, better: str, worse: str, decoding: str = "greedy") -> float:
    """How much the better row of a table has more than the worse one, in points."""
    return round(100 * (value(table, better, decoding) - value(table, worse, decoding)), 1)


def test_gains_are_those_of_the_papers_text() -> None:
    assert gain("table4", "anr", "mle-200") == 13.8  # "CPO+ANR has a 13.8% higher win rate than the MLE baseline"
    assert gain("table4", "mixnr-0.1", "mle-1000") == 9.8  # "and CPO+MixNR has a 9.8% higher win rate"
    assert gain("table2", "anr", "mle") == 3.5  # "CPO+ANR has a 3.5% higher win rate" with GPT2-XL
    assert gain("table5", "bnr-0.9", "mle") == 3.0  # "outperforms the MLE baseline by 3%"
    # "In all settings, CPO has consistently demonstrated superior performance over MLE"; beam 4 is lost.
    assert [gain("table3", "mixnr", "mle", d) for d in ("topk50", "topk50-p0.7", "beam2")] == [9.4, 9.4, 7.5]
    assert TABLES["table3"].value("mixnr", "beam4", "win rate", "truth") is None
    # "The effects of BNR and TNR are similar and they perform slightly better than MNR"
    assert value("table1", "tnr") > value("table1", "bnr") > value("table1", "mnr") > value("table1", "mle")
    # The same number: recipes/paper takes both for one model, of 1,000 and 200 steps.
    assert value("table1", "mle") == value("table4", "mle-200")


def test_the_best_alpha_of_the_papers_ensembles_is_as_its_text_says() -> None:
    """Few MLE weights for OpenLLaMA on Dolly, many for GPT2-XL and on Wikidump."""
    best = {}
    for table, row in (("table2", "mixnr"), ("table4", "mixnr"), ("table5", "bnr")):
        rows = TABLES[table].values["win rate", "greedy"]
        ensembles = {name: v for name, v in rows.items() if name.startswith(f"{row} ")}
        best[table] = max(ensembles, key=lambda name, values=ensembles: values[name])
    assert best == {"table2": "mixnr 0.7", "table4": "mixnr 0.1", "table5": "bnr 0.9"}
    mauve = TABLES["table5"].values["MAUVE", "greedy"]
    assert max(mauve, key=lambda name: mauve[name]) == "bnr 0.3"


def test_every_number_of_the_tables_is_the_papers() -> None:
    assert {(key, *which): rows for key, table in TABLES.items() for which, rows in table.values.items()} == PRINTED


def test_spellings_of_a_models_name_find_the_papers_row() -> None:
    for name in ("mixnr-alpha-0.5", "MixNR a0.50", "mixnr_0.5", "MIXNR, alpha = .5".replace(" .5", " 0.5")):
        assert row_name(name) == "mixnr 0.5"
    assert row_name("MLE (200 steps)") == "mle 200"
    assert value("table4", "mixnr") == value("table4", "mixnr-0") == 0.608
    assert value("table5", "bnr-alpha-0.9") == 0.538
    assert value("table4", "mle") == 0.522


@pytest.mark.parametrize(
    ("model", "decoding", "metric", "against"),
    [
        ("anr", "topk50", "win rate", "truth"),  # another decoding
        ("anr", "greedy", "win rate", "mle"),  # another opponent
        ("anr", "greedy", "", "truth"),  # another metric
        ("anr", "greedy", "MAUVE", ""),
        ("anr-small", "greedy", "win rate", "truth"),  # another row
        ("mixnr-alpha-0.2", "greedy", "win rate", "truth"),
        ("alpha-0.5", "greedy", "win rate", "truth"),  # a sweep's, of whatever was mixed
        ("", "greedy", "win rate", "truth"),
    ],
)
def test_the_papers_tables_have_no_number_for_another_measurement(
    model: str, decoding: str, metric: str, against: str
) -> None:
    assert TABLES["table4"].value(model, decoding, metric, against) is None
    assert TABLES["table4"].value("anr", "greedy", "win rate", "truth") == 0.643


def test_an_unknown_table_of_the_paper_is_refused() -> None:
    assert paper_table("table4").number == 4
    with pytest.raises(UserError, match=r"unknown --paper 'tabel4'\. Did you mean 'table4'\? Known: table1, "):
        paper_table("tabel4")


def job(**changes: Any) -> dict[str, Any]:
    """The job of an evaluation in Table 4's set-up."""
    data = {"name": "data/databricks-dolly-15k.jsonl", "task": "dolly", "split": "test", "measured": 1000}
    judge = {"model": "gpt-3.5-turbo", "template": "dolly", "orders": "paper"}
    return {"models": models(BASE_MODELS["OpenLLaMA-3B"]), "data": data, "judge": judge, **changes}


def models(*architectures: dict[str, Any] | None) -> dict[str, Any]:
    return {f"m{i}": {"path": "P", "architecture": architecture} for i, architecture in enumerate(architectures)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"models": models(BASE_MODELS["OpenLLaMA-3B"], BASE_MODELS["GPT2-XL"])},  # one of them is enough
            "base model OpenLLaMA-3B (llama, hidden size 3200, 26 layers) there, "
            "gpt2, hidden size 1600, 48 layers here",
        ),
        (
            {"models": models({**BASE_MODELS["OpenLLaMA-3B"], "layers": 32})},
            "base model OpenLLaMA-3B (llama, hidden size 3200, 26 layers) there, "
            "llama, hidden size 3200, 32 layers here",
        ),
        (
            {"models": models(None)},
            "base model OpenLLaMA-3B (llama, hidden size 3200, 26 layers) there, not recorded here",
        ),
        ({"data": {**job()["data"], "task": "continuation"}}, "task dolly there, continuation here"),
        ({"data": {**job()["data"], "split": "train"}}, "split test there, train here"),
        ({"data": {**job()["data"], "name": "facts"}}, "data databricks-dolly-15k there, facts here"),
        ({"data": {**job()["data"], "test_share": 0.1}}, "the half held out there, other rows here"),
        ({"data": {**job()["data"], "own_splits": True}}, "the half held out there, other rows here"),
    ],
)
def test_another_base_model_task_split_or_data_set_keeps_the_papers_numbers_away(
    changes: dict[str, Any], expected: str
) -> None:
    assert mismatches(TABLES["table4"], job(**changes)) == [expected]
    assert mismatches(TABLES["table4"], job()) == []
    gpt2_xl = job(models=models({"model_type": "gpt2", "hidden_size": 1600, "layers": 48}))
    assert mismatches(TABLES["table2"], gpt2_xl) == []


def test_differences_from_the_papers_set_up_that_do_not_hide_its_numbers_are_listed() -> None:
    assert differences(TABLES["table4"], job()) == []
    judge = {"model": "gpt-4o", "template": "wiki", "orders": "both"}
    assert differences(TABLES["table4"], job(judge=judge, data={"measured": 12})) == [
        "1,000 test prompts there, 12 here",
        "judge GPT-3.5 there, gpt-4o here",
        "the judge's template dolly there, wiki here",
        "one order of the two answers there, both here",
    ]
    assert differences(TABLES["table4"], job(judge={"reward_model": "rm"})) == ["judge GPT-3.5 there, rm here"]
    assert differences(TABLES["table4"], {}) == ["1,000 test prompts there, an unrecorded number here"]
