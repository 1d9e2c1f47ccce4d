"""`stats`: every number worked out by hand on a set of two groups."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.schema import Candidate, Group, Reject
from data.set_writer import NegativeSetWriter
from data.shards import LENDS, NegativeSet, warn_of_lending
from negatives_gen.__main__ import main
from negatives_gen.job.card import card
from negatives_gen.verbs.stats import Tally, _bar, statistics
from tests.support.older_schemas import write_as_schema
from tests.support.written import job_of


def candidate(strategy: str, text: str, tokens: int, logp: float | None, similarity: float | None, **more: Any) -> Any:
    similarities: dict[str, Any] = {"embedding": similarity, "reward": 2.0}
    return Candidate(strategy, [5] * tokens, text, reference_logp=logp, similarity=similarities, **more)


GROUPS = [
    Group(
        id="a" * 32, prompt="Is it?", response="yes", prompt_ids=[1], response_ids=[1, 2], reference_logp=-2.0,
        negatives=[
            candidate("an", " yes ", 3, -1.5, 0.0, finish_reason="stop"),
            candidate("an", "no", 1, -4.0, 0.25, finish_reason="length"),
            candidate("bn", "no", 2, -6.0, 1.0, source_id="b" * 32),
        ],
    ),
    Group(
        id="b" * 32, prompt="Where?", response="left", prompt_ids=[1], response_ids=[1, 2, 3, 4], split="test",
        reference_logp=-2.0,
        negatives=[
            candidate("an", "right", 2, -3.0, 0.5, finish_reason="length"),
            candidate("an", "up", 10, None, math.nan, finish_reason="stop"),
            candidate("bn", "yes", 2, -1.0, 0.95, source_id="a" * 32),
        ],
    ),
]  # fmt: skip
REJECTS = [
    Reject("c", "too long", "", "p"),
    Reject("d", "too long", "", "p"),
    Reject("e", "bad", "", ""),
]


SAMPLED: dict[str, Any] = {**job_of(), "strategies": {"an": {"count": 2, "top_k": 50}, "bn": {"count": 1}}}
OWN = {"count": 1, "origin": {"entry": "mine:OWN", "source_sha256": "c" * 64}}  # of a strategy from outside
KNOWN = "known", "count", "share", "unknown", "at_least_by"


def written(
    path: Path, shards: Sequence[Sequence[Group]], job: dict[str, Any] | None = None, slots: Any = None
) -> NegativeSet:
    writer = NegativeSetWriter(str(path), job or job_of(an=2, bn=1), ["embedding", "reward"])
    writer.begin()
    for index, groups in enumerate(shards):
        seconds = {"an": 1.5, "score": 0.25}
        rejects = [] if index else REJECTS
        writer.write_shard(index, groups, rejects, seconds=seconds, layout="packed", slot_seconds=slots)
    writer.finish(len(shards))
    return NegativeSet(str(path))


@pytest.mark.parametrize(
    ("strategies", "split", "lends"),
    [
        ({"bn": {"count": 1, "bn_batch_size": 64}, "an": {"count": 2}}, "all", True),
        ({"bn": {"count": 1, "bn_batch_size": 64, "within": "half"}, "an": {"count": 2}}, "all", False),
        ({"bn": {"count": 1, "bn_batch_size": 64}, "an": {"count": 2}}, "train", False),
        ({"an": {"count": 2}}, "all", False),
    ],
)
def test_a_set_says_whether_its_halves_lent_to_each_other(
    strategies: dict[str, Any], split: str, lends: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = written(tmp_path, [GROUPS], {**job_of(), "strategies": strategies, "data": {"split": split}})
    assert statistics(made)["lends_across_halves"] == lends
    warn_of_lending(made)
    assert caplog.messages == ([f"negative set '{tmp_path}': its {LENDS}."] if lends else [])


@pytest.fixture
def negatives(tmp_path: Path) -> NegativeSet:
    return written(tmp_path / "set", [GROUPS[:1], GROUPS[1:]])


def test_statistics_of_a_set_written_by_hand_are_those_counted_by_hand(negatives: NegativeSet) -> None:
    found = statistics(negatives)
    assert found["groups"] == 2
    assert found["splits"] == {"test": 1, "train": 1}
    assert (found["rows_read"], found["rows_rejected"]) == (5, 3)
    assert found["rejected_by_reason"] == {"too long": 2, "bad": 1}
    assert found["shards"] == 2
    assert found["bytes"] == sum(file.stat().st_size for file in Path(negatives.folder.path).glob("shard-*.parquet"))
    assert found["seconds"] == {"an": 3.0, "score": 0.5}
    assert found["ground_truth"] == {
        "count": 2,
        "tokens": {"mean": 3.0, "p50": 2, "p95": 4, "max": 4, "total": 6},
        "logp_per_token": pytest.approx(-4 / 6),
    }
    # Lengths 3, 1, 2, 10; the one without a log-probability counts in neither likelihood.
    assert found["strategies"]["an"] == {
        "count": 4,
        "tokens": {"mean": 4.0, "p50": 2, "p95": 10, "max": 10, "total": 16},
        "cut": 2 / 4,
        "duplicates": 1 / 4,
        "equal_truth": 1 / 4,
        "logp_per_token": pytest.approx((-1.5 - 4 - 3) / (3 + 1 + 2)),
        "likelier_than_truth": 1 / 3,
    }
    # "yes" is the truth of another group only, and nothing here was sampled.
    assert found["strategies"]["bn"] == {
        "count": 2,
        "tokens": {"mean": 2.0, "p50": 2, "p95": 2, "max": 2, "total": 4},
        "cut": None,
        "duplicates": 1 / 2,
        "equal_truth": 0.0,
        "logp_per_token": pytest.approx((-6 - 1) / 4),
        "likelier_than_truth": 1 / 2,
    }
    embedding = found["similarity"]["embedding"]
    assert embedding["edges"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert embedding["counts"] == {"an": [1, 0, 1, 0, 0, 1, 0, 0, 0, 0], "bn": [0] * 9 + [2]}
    assert embedding["mean"] == {"an": pytest.approx(0.25), "bn": pytest.approx(0.975)}
    # A signal that says the same of all still has a bin of some width to lie in.
    reward = found["similarity"]["reward"]
    assert (reward["edges"][0], reward["edges"][-1]) == (1.5, 2.5)
    assert reward["counts"] == {"an": [0] * 5 + [4] + [0] * 4, "bn": [0] * 5 + [2] + [0] * 4}


def test_a_ranking_signal_is_named_with_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    minilm = "sentence-transformers/all-MiniLM-L6-v2"
    signals = {"embedding": {"embedder": minilm, "weights_sha256": "a" * 64}, "reward": {"reward_model": None}}
    path, data = tmp_path / "set", {"name": "tea", "task": "dolly", "split": "all"}
    found = written(path, [GROUPS[:1]], {**job_of(an=2, bn=1), "data": data, "signals": signals})
    shown = statistics(found)["similarity"]
    assert [shown[name]["models"] for name in ("embedding", "reward")] == [{"embedder": minilm}, {}]
    assert main(["stats", str(path)]) == main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"ranking signal embedding (embedder {minilm}) from to" in said
    assert "ranking signal reward from to" in said
    assert f"1 of 1 group, ranked by embedding, embedder {minilm}; from" in said
    assert f"| ranking signals | `embedding` (embedder `{minilm}`), `reward` |" in card(found.manifest)


def printed_reach(negatives: NegativeSet, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The line on the sampler's reach, and the advice below it."""
    assert main(["stats", negatives.folder.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    out = " ".join(" ".join(lines).partition("! ")[0].split())
    part = "in reach of" + out.partition("in reach of")[2].partition(" strategy count ")[0]
    said, few, advice = part.partition(" few: ")
    return [said, *([f"few: {advice}"] if few else [])]


def test_what_was_in_reach_of_the_sampler_is_counted_and_advice_given_where_it_is_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "in reach of the sampler: "
    advice = (
        "few: training favours whatever the sampler cannot say. Sample with --top_k 0 and --max_new_tokens "
        f"{len(GROUPS[0].response_ids)} (the longest ground truth)"
    )
    for said, lines, known in (
        ([True, False], [f"{line}1 of 2 ground truths (50.0%)"], (2, 1, 0.5, None, [])),
        (
            [True, False, False],
            [f"{line}1 of 3 ground truths (33.3%)", f"{advice}, or train with --in_support true."],
            (3, 1, pytest.approx(1 / 3), None, []),
        ),
        ([False], [f"{line}0 of 1 ground truths (0.0%)", f"{advice}."], (1, 0, 0.0, None, [])),  # nothing would be kept
    ):
        groups = [replace(GROUPS[0], id=f"{n:032x}", in_support=value) for n, value in enumerate(said)]
        negatives = written(tmp_path / str(len(said)), [groups])
        assert printed_reach(negatives, capsys) == lines
        assert statistics(negatives)["in_support"] == dict(zip(KNOWN, known, strict=True))


@pytest.mark.parametrize(("top_k", "at_least"), [(50, ["rn"]), (0, [])])  # without top-k lengths alone decide
def test_what_a_strategy_reaches_that_is_given_part_of_the_truth_is_a_lower_bound(
    top_k: int, at_least: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"count": 1, "top_k": top_k}
    groups = [replace(GROUPS[0], id=f"{n:032x}", in_support=n == 0) for n in range(3)]
    job = {**SAMPLED, "strategies": {"an": settings, "rn": {**settings, "rn_share": "0.5"}, "own": OWN}}
    negatives = written(tmp_path / "set", [groups], job)
    said, advice = printed_reach(negatives, capsys)
    least = "at least " if at_least else ""
    assert said == f"in reach of the sampler: {least}1 of 3 ground truths (33.3%)"
    assert advice.endswith(" At least: rn is given part of a ground truth." if at_least else "--in_support true.")
    assert statistics(negatives)["in_support"]["at_least_by"] == at_least


def test_where_some_reach_is_unknown_there_is_no_share_and_no_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the truths that are too long are known with --sampler: of all of them that says nothing."""
    groups = [replace(GROUPS[0], id=f"{n:032x}", in_support=False if n < 5 else None) for n in range(100)]
    small = written(tmp_path / "small", [groups], {**SAMPLED, "sampler": {"name": "small"}})
    why = "of --sampler no ranks are computed"
    assert printed_reach(small, capsys) == [
        f"in reach of the sampler: 0 of 100 ground truths, out of reach 5, unknown 95: {why}"
    ]
    assert statistics(small)["in_support"] == dict(zip(KNOWN, (5, 0, None, why, []), strict=True))
    groups[0].in_support = True
    job = {**SAMPLED, "strategies": {**SAMPLED["strategies"], "own": OWN}}
    assert printed_reach(written(tmp_path / "own", [groups], job), capsys) == [
        "in reach of the sampler: 1 of 100 ground truths, out of reach 4, unknown 95: its strategies (own) do not "
        "say it"
    ]


def test_where_no_reach_is_known_one_line_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {**job_of(bn=1), "strategies": {"bn": {"count": 1}, "rotated": OWN}}
    for name, (said_by, why) in {
        "borrowed": (job_of(bn=1), "none of its strategies samples"),
        "old": (SAMPLED, "sets of schema version 3 do not say it"),
        "other": ({**SAMPLED, "sampler": {"name": "small"}}, "of --sampler no ranks are computed"),
        "own": (own, "its strategies (rotated) do not say it"),
        "an": (SAMPLED, "its strategies (an) do not say it"),
    }.items():
        negatives = written(tmp_path / name, [GROUPS[:1], GROUPS[1:]], said_by)
        if name == "old":
            write_as_schema(3, tmp_path / name)
        assert main(["stats", negatives.folder.path]) == 0
        lines = capsys.readouterr().out.splitlines()
        said = [line for line in lines if "in reach" in line]
        assert said == [f"in reach of the sampler: unknown for all 2 groups: {why}"]
        known = statistics(NegativeSet(negatives.folder.path))["in_support"]
        assert known == {"known": 0, "count": 0, "share": None, "unknown": why, "at_least_by": []}


def test_shards_do_not_change_what_is_counted(negatives: NegativeSet, tmp_path: Path) -> None:
    """One shard, two, and two with an empty one between, which holds rejects only, give the same."""
    kept = ("groups", "splits", "ground_truth", "strategies", "similarity")
    expected = {key: statistics(negatives)[key] for key in kept}
    for name, shards in {"one": [GROUPS], "three": [GROUPS[:1], [], GROUPS[1:]]}.items():
        found = statistics(written(tmp_path / name, shards))
        assert {key: found[key] for key in kept} == expected


def test_a_set_without_groups(tmp_path: Path) -> None:
    found = statistics(written(tmp_path / "empty", [[]]))
    assert found["ground_truth"]["tokens"] == {"mean": None, "p50": None, "p95": None, "max": None, "total": 0}
    assert (found["groups"], found["strategies"], found["similarity"]) == (0, {}, {})
    assert main(["stats", str(tmp_path / "empty")]) == 0


def test_percentiles_are_lengths_that_occur() -> None:
    import numpy as np

    tally = Tally()
    for lengths in ([1] * 94, [7] * 5, [30]):
        tally.add_continuations(np.array(lengths), np.full(len(lengths), np.nan))
    assert tally.tokens() == {"mean": 1.59, "p50": 1, "p95": 7, "max": 30, "total": 159}


def test_real_set_agrees_with_its_manifest(negative_set: Path) -> None:
    negatives = NegativeSet(str(negative_set))
    found = statistics(negatives)
    assert (found["groups"], found["strategies"]["an"]["count"]) == (48, 144)
    assert found["strategies"]["an"]["tokens"]["total"] == sum(s.tokens["an"] for s in negatives.manifest.shards)
    logps = [c.reference_logp or 0 for g in negatives.groups() for c in g.negatives]
    tokens = [len(c.ids) for g in negatives.groups() for c in g.negatives]
    assert found["strategies"]["an"]["logp_per_token"] == pytest.approx(sum(logps) / sum(tokens))


def test_stats_prints_counts_lengths_and_histograms_within_100_columns(
    negatives: NegativeSet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", negatives.folder.path]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("2 groups (1 test, 1 train) in 2 shards, ")
    assert lines[1] == "from reference 'ref'"
    assert lines[2:5] == ["5 rows read, 3 rejected", "2 too long", "1 bad"]
    assert "truth 2 3.0 2 4 4 - - - -0.67 -" in lines
    assert "an 4 4.0 2 10 10 50.0% 25.0% 25.0% -1.42 33.3%" in lines
    assert "bn 2 2.0 2 2 2 - 50.0% 0.0% -1.75 50.0%" in lines
    full = "█" * 24
    assert "from to an, mean 0.25 bn, mean 0.97" in lines
    assert f"0.00 0.10 {full} 1 0" in lines
    assert f"0.90 1.00 0 {full} 2" in lines
    assert lines[-1] == "time: an 3 s, score 0.5 s"
    assert all(len(line) <= 100 for line in lines)


def test_stats_say_how_full_the_engine_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = written(tmp_path / "set", [GROUPS[:1], GROUPS[1:]], slots={"filled": 3.0, "all": 4.0})
    assert statistics(found)["occupancy"] == 0.75
    assert main(["stats", found.folder.path]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "engine 75% occupied, over all shards"
    assert statistics(written(tmp_path / "none", [GROUPS]))["occupancy"] is None


def test_a_histograms_bar_is_as_long_as_its_share_to_an_eighth_of_a_column() -> None:
    assert [_bar(share, 4) for share in (0, 0.001, 1 / 32, 0.5, 0.625, 1)] == ["", "▏", "▏", "██", "██▌", "████"]


def test_json_is_the_statistics(negatives: NegativeSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "--json", negatives.folder.path]) == 0
    assert json.loads(capsys.readouterr().out) == statistics(negatives)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: python -m negatives_gen stats needs one negative set: stats DIR [--json].\n"),
        (
            ["DIR", "--jsn"],
            "error: unknown key 'jsn' on the command line of python -m negatives_gen stats. Did you mean 'json'? "
            "See `python -m negatives_gen stats --help` for all keys.\n",
        ),
        (
            ["DIR", "OTHER"],
            "error: unexpected argument 'OTHER' on the command line of python -m negatives_gen stats; options read "
            "--key value.\n",
        ),
    ],
)
def test_arguments_of_stats_that_cannot_be_used_are_refused_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", *argv]) == 2
    assert capsys.readouterr().err == message


def test_a_damaged_shard_is_refused(negatives: NegativeSet, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(negatives.folder.path) / "shard-00001.parquet").write_bytes(b"PAR1 no more")
    assert main(["stats", negatives.folder.path]) == 2
    assert "shard-00001.parquet" in (error := capsys.readouterr().err)
    assert "is damaged" in error
