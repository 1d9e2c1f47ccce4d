"""Signal `given` beside other strategies: scores of those that have them, null of the others, and who works with it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.command.options import make_config
from data.schema import Group, group_from_row, groups_to_table
from data.shards import NegativeSet
from data.storage import sha256
from negatives_gen.job.card import card
from negatives_gen.verbs.export import ExportConfig, export
from negatives_gen.verbs.extend import ExtendConfig, extend
from negatives_gen.verbs.inspect import main as inspect
from negatives_gen.verbs.plan import PlanConfig, predict
from negatives_gen.verbs.stats import main as stats
from negatives_gen.verbs.stats import statistics
from negatives_gen.verbs.verify import VerifyConfig, verify
from tests.support.given_rows import COLUMNS, FACTS, made, ultrafeedback, write
from tests.support.pages import data_of
from tests.support.training import make_trainer
from tests.support.without_ray import without_ray
from tests.support.written import refusal
from trainer.groups.dataset import ContrastiveGroups
from trainer.objectives.pairs import preference_pairs
from trainer.run import main as train

SCORES = {"given": [5.0, 3.0, 2.0]}  # of the rows, in their order


@pytest.fixture(scope="module")
def mixed(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    path = write(folder / "rows.jsonl", ultrafeedback([4] * 12))
    options = {"columns": COLUMNS, "strategies": "given=3,bn=1", "signals": "given,rouge"}
    made(reference, folder / "set", path, **options)
    return folder / "set"


def scores(path: Path | str) -> set[tuple[Any, ...]]:
    """Strategy and value of signal `given` of each group's candidates, as the shards hold them."""
    tables = [pq.read_table(file).to_pylist() for file in sorted(Path(path).glob("shard-*.parquet"))]
    return {
        tuple((c["strategy"], c["similarity"]["given"]) for c in row["negatives"]) for table in tables for row in table
    }


BN, GIVEN = ("bn", None), tuple(("given", score) for score in SCORES["given"])


def test_scores_are_the_rows_and_of_other_strategies_there_are_none(mixed: Path) -> None:
    assert scores(mixed) == {(BN, *GIVEN)}
    found = NegativeSet(str(mixed))
    assert len(list(found.groups())) == 12
    assert all(c.similarity["rouge"] is not None for group in found.groups() for c in group.negatives)
    assert found.manifest.job["signals"]["given"] == {"only_of": ["given"]}
    assert "only_of" not in found.manifest.job["signals"]["rouge"]
    assert verify(str(mixed), VerifyConfig(sample=2)) == []


@pytest.mark.parametrize("signals", ["given", "rouge,given"])
def test_alone_or_in_any_order(signals: str, reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 6))
    found = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=3,tn=1", signals=signals)
    assert found.signals == signals.split(",")
    assert scores(tmp_path / "set") == {(*GIVEN, ("tn", None))}


def test_a_borrowed_response_that_the_row_lists_too_has_no_score(reference: Path, tmp_path: Path) -> None:
    """There are two rows of one half, so BN takes the ground truth of the other, which these rows list as well."""
    rows = [
        {"instruction": row["prompt"], "completions": [
            {"response": FACTS[place]["completion"], "overall_score": 9.0},
            {"response": FACTS[1 - place]["completion"], "overall_score": 4.0},
        ]}
        for place, row in enumerate(FACTS[:2])
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    of = {"strategies": "given=1,bn=1", "signals": "given", "test_share": 0.0}
    made(reference, tmp_path / "set", path, columns=COLUMNS, **of)
    assert scores(tmp_path / "set") == {(BN, ("given", 4.0))}


def test_an_extension_keeps_the_scores(mixed: Path, tmp_path: Path) -> None:
    with without_ray():
        extend(str(mixed), make_config(ExtendConfig, out=str(tmp_path / "more"), strategies="tn=1", signals="bleu"))
    assert scores(tmp_path / "more") == {(BN, *GIVEN, ("tn", None))}
    assert NegativeSet(str(tmp_path / "more")).signals == ["given", "rouge", "bleu"]
    assert verify(str(tmp_path / "more"), VerifyConfig(sample=1)) == []


def changed(source: Path, out: Path, edit: Callable[[list[Group]], None]) -> Path:
    """A copy of a set with other values in its first shard, and checksums that fit."""
    path = Path(shutil.copytree(source, out))
    file = path / "shard-00000.parquet"
    groups = [group_from_row(row) for row in pq.read_table(file).to_pylist()]
    edit(groups)
    pq.write_table(groups_to_table(groups, ["given", "rouge"]), file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][0].update(bytes=file.stat().st_size, sha256=sha256(file.read_bytes()))
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return path


def without_rouge(groups: list[Group]) -> None:
    groups[0].negatives[1].similarity["rouge"] = None


def test_an_extension_computes_what_the_set_lacks(mixed: Path, tmp_path: Path) -> None:
    path = changed(mixed, tmp_path / "set", without_rouge)
    with without_ray():
        extend(str(path), make_config(ExtendConfig, out=str(tmp_path / "more"), strategies="tn=1"))
    before, after = (next(NegativeSet(str(where)).groups()) for where in (mixed, tmp_path / "more"))
    assert after.negatives[:4] == before.negatives
    assert after.negatives[4].strategy == "tn"
    assert after.negatives[4].similarity["given"] is None


def lose(groups: list[Group]) -> None:
    groups[0].negatives[1].similarity["given"] = None


def invent(groups: list[Group]) -> None:
    groups[0].negatives[0].similarity["given"] = 0.0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose, "1 of negatives[].similarity.given are null for negatives of given"),
        (invent, "1 of negatives[].similarity.given are values for negatives that are not of given"),
    ],
)
def test_a_null_or_a_value_in_the_wrong_place_is_damage(
    damage: Callable[[list[Group]], None], said: str, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(mixed, tmp_path / "set", damage)
    assert verify(str(path), VerifyConfig(sample=1)) == ["schema"]
    assert f"FAILED   schema: shard-00000.parquet: {said}" in capsys.readouterr().out
    computing = NegativeSet(str(path))
    computing.compute_with(None)
    assert said in refusal(lambda: list(computing.groups()))
    if damage is invent:  # a set that lacks scores can still be looked at
        assert said in refusal(lambda: list(NegativeSet(str(path)).groups()))


def test_a_plan_takes_it(reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 12))
    options = {"model": str(reference), "dataset": path, "columns": COLUMNS, "strategies": "given=3,tn=1"}
    plan = predict(make_config(PlanConfig, **options, signals="given", tokens_per_second=100.0, sample=12))
    assert plan.groups == 12


def test_stats_leave_out_who_has_no_values(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = statistics(NegativeSet(str(mixed)))["similarity"]
    assert found["given"]["counts"] == {"given": [12, 0, 0, 12, 0, 0, 0, 0, 0, 12]}  # 2, 3 and 5 of 2 to 5
    assert found["given"]["mean"] == {"given": pytest.approx(10 / 3)}
    assert sorted(found["rouge"]["mean"]) == ["bn", "given"]
    stats([str(mixed)])
    said = capsys.readouterr().out
    assert "ranking signal given (bn: -)" in said
    assert "nan" not in said


def test_inspect_shows_a_dash_and_ranks_it_last(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect([str(mixed), "--limit", "1"])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if " bn " in line)
    assert lines[at].split()[:2] == ["4", "bn"]
    assert "given      -" in lines[at]
    inspect([str(mixed), "--html", str(tmp_path / "page.html")])
    capsys.readouterr()
    negatives = data_of((tmp_path / "page.html").read_text())["groups"][0]["negatives"]
    assert [(c["strategy"], c["similarity"][0], c["ranks"][0]) for c in negatives] == [
        ("bn", None, 4), ("given", 5, 1), ("given", 3, 2), ("given", 2, 3),
    ]  # fmt: skip


def test_an_export_by_it_puts_those_without_a_value_last(mixed: Path, tmp_path: Path) -> None:
    config = make_config(
        ExportConfig, format="trl-preference", out=str(tmp_path / "x.jsonl"), split="all", rank_by="given"
    )  # fmt: skip
    assert export(str(mixed), config).rows == 48
    rows = [json.loads(line)["rejected"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    groups = list(NegativeSet(str(mixed)).groups())
    bn, *given = (c.text for c in groups[0].negatives)
    assert rows[:4] == [*given, bn]


def test_the_card_says_of_whom_it_is(mixed: Path) -> None:
    assert "| ranking signals | `given` (null but for `given`), `rouge` |" in card(NegativeSet(str(mixed)).manifest)


@pytest.mark.parametrize(
    ("objective", "use", "start"), [("cpo", None, math.log(5)), ("cpo-rank", "given=3", math.log(math.factorial(4)))]
)
def test_what_does_not_need_the_others_values_trains(
    objective: str, use: str | None, start: float, reference: Path, mixed: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        reference, mixed, tmp_path / "out", objective=objective, use=use, max_steps=2, logging_steps=1,
        per_device_train_batch_size=6, learning_rate=1e-5, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["loss"] == pytest.approx(start, abs=1e-3)
    assert second["loss"] < first["loss"]
    assert -1 <= second["rewards/kendall_tau"] <= 1


@pytest.mark.parametrize(("strategy", "count"), [("given", 3), ("given", 2), ("bn", 1)])
def test_dpo_has_a_pair_for_each_negative_of_one_strategy(strategy: str, count: int, mixed: Path) -> None:
    found = NegativeSet(str(mixed))
    pairs = preference_pairs(ContrastiveGroups.of([found], "all", f"{strategy}={count}"), "dpo").to_list()
    assert len(pairs) == 12 * count
    of_strategy = {g.id: [c.ids for c in g.negatives if c.strategy == strategy][:count] for g in found.groups()}
    assert sorted((pair["id"], pair["rejected_ids"]) for pair in pairs) == sorted(
        (group, ids) for group, several in of_strategy.items() for ids in several
    )
    assert refusal(lambda: preference_pairs(ContrastiveGroups.of([found], "all"), "dpo")) == (
        "objective 'dpo' takes the negatives of one strategy, not of bn=1,given=3. "
        "Choose one: --use bn=1 or --use given=3."
    )


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--objective", "cpo-rank"], "the objective learns their order by it"),
        (["--objective", "cpo", "--min_similarity", "3"], "--min_similarity and --max_similarity choose them by it"),
        (["--objective", "dpo", "--use", "bn=1:similar"], "--use ...:similar chooses them by it"),
    ],
)
def test_what_needs_them_is_refused_in_one_line(
    words: list[str], needed: str, reference: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--model", str(reference), "--shards", str(mixed), "--output_dir", str(tmp_path / "out")]
    assert train([*files, "--use_cpu", "true", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    way_out = "--rank_by rouge." if "bn=1:similar" in words else "--use given=3 or --rank_by rouge."
    assert line == (
        f"error: ranking signal 'given' has no values for negatives of 'bn' in negative set '{mixed}', and {needed}. "
        f"Give {way_out}"
    )
    assert not (tmp_path / "out").exists()
