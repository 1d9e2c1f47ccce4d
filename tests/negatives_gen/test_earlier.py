"""Strategy `earlier`: candidates of an earlier set, which another reference scored. No engine, no Ray."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.models import load_tokenizer, weights_hash
from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.storage import sha256
from data.tokens import Declared, declare
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.strategies.base import Tools
from negatives_gen.strategies.earlier import COLUMNS, STRATEGY, Options
from negatives_gen.verbs.extend import ExtendConfig, extend
from negatives_gen.verbs.plan import PlanConfig, predict
from negatives_gen.verbs.stats import statistics
from negatives_gen.verbs.verify import VerifyConfig, verify
from tests.support.tiny import save_tiny_model
from tests.support.without_ray import without_ray


class NoEngine:
    """Must not start."""

    def __init__(self, *_: Any, **__: Any):
        pytest.fail("an engine was started")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of the next round: other weights, the same tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("policy") / "policy", seed=7)


def made(model: Path, out: Path, earlier: Path, **options: Any) -> NegativeSet:
    named: dict[str, Any] = {"strategies": "earlier=2", "earlier_set": str(earlier), "groups_per_shard": 20}
    config = make_config(
        GenerateConfig, model=str(model), dataset="facts", split="train", out=str(out), embedder="reference",
        **{"limit": 48, **named, **options},
    )  # fmt: skip
    with without_ray():
        generate(config, Components(engine=NoEngine))
    return NegativeSet(str(out))


def written(path: Path, groups: Sequence[Group], like: Path, per_shard: int = 2, **counts: int) -> Path:
    """A finished set of these groups with the job of another one, but for the counts."""
    job = {**NegativeSet(str(like)).manifest.job, "strategies": {name: {"count": n} for name, n in counts.items()}}
    writer = NegativeSetWriter(str(path), job, ["embedding"])
    writer.begin()
    shards = [groups[start : start + per_shard] for start in range(0, len(groups), per_shard)]
    for index, shard in enumerate(shards):
        writer.write_shard(index, shard, [], seconds={}, layout="packed")
    writer.finish(len(shards))
    return path


def scored(strategy: str, ids: list[int], text: str, **values: Any) -> Candidate:
    return Candidate(strategy, ids, text, reference_logp=-1.0, similarity={"embedding": 0.5}, **values)


def row(number: int, *negatives: Candidate) -> Group:
    return Group(
        *(f"{number:032x}", f"p{number}", " truth", [number, 5], [7, 0]), reference_logp=-1.0,
        response_embedding=[1.0], negatives=list(negatives), query="q",
    )  # fmt: skip


def fresh(group: Group) -> Group:
    return replace(group, negatives=[], reference_logp=None, response_embedding=None)


def settings_of(path: Path, count: int, use: Sequence[str] = ()) -> dict[str, Any]:
    return {"count": count, **STRATEGY.settings(Options(str(path), list(use)))}


@pytest.fixture
def tools(reference: Path) -> Tools:
    tokenizer = load_tokenizer(str(reference))
    declare(tokenizer, Declared(rows=50))
    return Tools(seed=0, context=8, tokenizer=tokenizer)


def test_candidates_are_taken_in_the_sets_order_with_all_that_says_how_they_were_drawn(
    negative_set: Path, tools: Tools, tmp_path: Path
) -> None:
    drawn = scored("an", [8, 0], " one", finish_reason="stop", seed=2**40, sampler_logp=-1.5)
    lent = scored("bn", [9, 0], " two", source_id="f" * 32)
    path = written(tmp_path / "set", [row(1, drawn, lent)], negative_set, an=1, bn=1)
    for count in (1, 2):
        group = fresh(row(1))
        assert STRATEGY.add([group], [group], settings_of(path, count), tools) == {}
        kept = [replace(c, strategy="earlier", reference_logp=None, similarity={}) for c in (drawn, lent)]
        assert group.negatives == kept[:count]


def test_what_repeats_and_what_the_reference_does_not_take_is_passed_over(
    negative_set: Path, tools: Tools, tmp_path: Path
) -> None:
    negatives = [
        scored("an", [7, 0], " truth "),
        scored("an", [8, 0], " one"),
        scored("an", [8, 8, 0], " one "),
        scored("an", [9, 9, 9, 9, 9, 9, 0], " long"),
        scored("an", [50, 0], " beyond"),
        scored("an", [49, 9, 9, 9, 9, 0], " fits"),
    ]
    path = written(tmp_path / "set", [row(1, *negatives)], negative_set, an=6)
    group = fresh(row(1))
    assert STRATEGY.add([group], [group], settings_of(path, 2), tools) == {}
    assert [c.text for c in group.negatives] == [" one", " fits"]
    again = fresh(row(1))
    short = STRATEGY.add([again], [again], settings_of(path, 3), tools)
    assert short == {again.id: "2 of 3: of the 6 there, those that repeat or do not fit are passed over"}


def test_only_the_named_strategies_are_used_and_so_many_of_each(
    negative_set: Path, tools: Tools, tmp_path: Path
) -> None:
    negatives = [scored(name, [8 + i, 0], f" {name} {i}") for i, name in enumerate(["an", "an", "bn", "mn", "mn"])]
    path = written(tmp_path / "set", [row(1, *negatives)], negative_set, an=2, bn=1, mn=2)
    group = fresh(row(1))
    settings = settings_of(path, 3, ["mn=2", "an=1"])
    assert settings["earlier_use"] == ["an=1", "mn=2"]
    assert STRATEGY.add([group], [group], settings, tools) == {}
    assert [c.text for c in group.negatives] == [" an 0", " mn 3", " mn 4"]
    with pytest.raises(UserError, match=r"--earlier_use bn=2: the set .* has an=2,bn=1,mn=2"):
        settings_of(path, 1, ["bn=2"])


def test_groups_that_the_set_lacks_or_has_behind_another_prompt_are_named(
    negative_set: Path, tools: Tools, tmp_path: Path
) -> None:
    rows = [row(number, scored("an", [8, 0], f" {number}")) for number in range(1, 6)]
    path = written(tmp_path / "set", rows, negative_set, an=1)
    groups = [fresh(row(9)), fresh(row(5)), fresh(row(1)), replace(fresh(row(2)), prompt_ids=[2, 6])]
    assert STRATEGY.add(groups, groups, settings_of(path, 1), tools) == {
        groups[0].id: "0 of 1: the earlier set has no such group",
        groups[3].id: "0 of 1: the earlier set has this group behind another prompt (template or length)",
    }
    assert [[c.text for c in group.negatives] for group in groups] == [[], [" 5"], [" 1"], []]


def test_only_the_shards_that_hold_the_groups_are_read(
    negative_set: Path, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(number, scored("an", [8, 0], f" {number}")) for number in range(1, 8)]
    path, read = written(tmp_path / "set", rows, negative_set, an=1), list[tuple[int, Any]]()
    whole = NegativeSet.shard_table

    def counted(self: NegativeSet, index: int, columns: Sequence[str] | None) -> Any:
        read.append((index, columns))
        return whole(self, index, columns)

    monkeypatch.setattr(NegativeSet, "shard_table", counted)
    groups = [fresh(row(number)) for number in (7, 3, 4)]
    assert STRATEGY.add(groups, groups, settings_of(path, 1), tools) == {}
    assert read == [(1, COLUMNS), (3, COLUMNS)]


def test_a_set_that_has_changed_since_the_job_began_is_not_read(
    negative_set: Path, tools: Tools, tmp_path: Path
) -> None:
    path = written(tmp_path / "set", [row(1, scored("an", [8, 0], " one"))], negative_set, an=1)
    settings = {**settings_of(path, 1), "earlier_sha256": "0" * 64}
    with pytest.raises(UserError, match="has changed since this job began"):
        STRATEGY.add([fresh(row(1))], [], settings, tools)


@pytest.mark.seconds
def test_a_job_of_it_alone_starts_no_engine_and_scores_by_its_own_reference(
    negative_set: Path, policy: Path, tmp_path: Path
) -> None:
    found = made(policy, tmp_path / "set", negative_set)
    before = {group.id: group for group in NegativeSet(str(negative_set)).groups()}
    assert len(found) == 48
    for group in found.groups():
        earlier = before[group.id].negatives[:2]
        assert [(c.strategy, c.ids, c.text) for c in group.negatives] == [("earlier", c.ids, c.text) for c in earlier]
        assert all(c.reference_logp != e.reference_logp for c, e in zip(group.negatives, earlier, strict=True))
        assert group.in_support is None
    job = found.manifest.job
    assert job["strategies"]["earlier"] == {
        "count": 2,
        "earlier_set": str(negative_set),
        "earlier_sha256": sha256((negative_set / "manifest.json").read_bytes()),
    }
    assert job["model"]["weights_sha256"] == weights_hash(str(policy))
    assert verify(found.folder.path, VerifyConfig(model=str(policy))) == []
    assert statistics(found)["strategies"]["earlier"]["count"] == 96


def test_groups_that_the_set_lacks_are_rejected_and_counted(
    negative_set: Path, policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = list(NegativeSet(str(negative_set)).groups())
    found = made(policy, tmp_path / "set", written(tmp_path / "part", groups[:40], negative_set, 7, an=3))
    assert found.manifest.counts["rows_written"] == 40
    assert found.manifest.counts["rejected_by_reason"] == {"too few earlier negatives": 8}
    assert {reject.detail for reject in found.rejects()} == {"0 of 2: the earlier set has no such group"}


@pytest.mark.seconds
def test_added_to_a_finished_set_it_equals_one_go_and_grows(negative_set: Path, policy: Path, tmp_path: Path) -> None:
    first = made(policy, tmp_path / "first", negative_set, strategies="tn=1", earlier_set=None)

    def extended(path: Path, name: str, **options: Any) -> NegativeSet:
        config = make_config(ExtendConfig, out=str(tmp_path / name), **options)
        with without_ray():
            extend(str(path), config, Components(engine=NoEngine))
        return NegativeSet(str(tmp_path / name))

    then = extended(tmp_path / "first", "then", strategies="earlier=1", earlier_set=str(negative_set))
    more = extended(tmp_path / "then", "more", strategies="earlier=2")
    whole = made(policy, tmp_path / "whole", negative_set, strategies="tn=1,earlier=2")
    assert len(first) == len(then) == 48
    assert more.manifest.job == whole.manifest.job
    for group, other in zip(more.groups(), whole.groups(), strict=True):
        assert [c.ids for c in group.negatives] == [c.ids for c in other.negatives]
        assert [c.strategy for c in group.negatives] == ["earlier", "earlier", "tn"]
    groups = list(NegativeSet(str(negative_set)).groups())
    other = written(tmp_path / "other", groups, negative_set, an=3)
    with pytest.raises(UserError, match=r"the set's 'earlier' was made with earlier_sha256 [0-9a-f]{64}, this run"):
        extended(tmp_path / "then", "never", strategies="earlier=2", earlier_set=str(other))


def test_the_same_set_elsewhere_is_the_same_job_and_another_is_not(
    negative_set: Path, policy: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(negative_set, tmp_path / "copy"))
    found = made(policy, tmp_path / "set", negative_set)
    assert made(policy, tmp_path / "set", copy).manifest == found.manifest
    other = written(tmp_path / "other", list(NegativeSet(str(copy)).groups()), negative_set, an=3)
    with pytest.raises(UserError, match="already holds"):
        made(policy, tmp_path / "set", other)


def test_other_data_are_said_before_any_work(
    negative_set: Path, policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    first = made(policy, tmp_path / "first", negative_set)
    assert "other examples" not in caplog.text
    made(policy, tmp_path / "then", Path(first.folder.path), limit=30, strategies="earlier=1")
    assert f"--earlier_set '{first.folder.path}' was made of other examples than this job" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"earlier_set": None}, "strategy 'earlier' needs --earlier_set"),
        ({"earlier_set": "/no/such/set"}, "'/no/such/set' does not exist, so it is no negative set"),
        ({"strategies": "earlier=4"}, "earlier=4: a group of --earlier_set '.*' has 3 such candidates"),
        ({"earlier_use": "an=1"}, "earlier=2: a group of --earlier_set '.*' has 1 such candidates"),
        ({"earlier_use": "an"}, "--earlier_use 'an': 'an' needs a whole number"),
        ({"earlier_use": "bn=1"}, "--earlier_use bn=1: the set '.*' has an=3"),
        ({"strategies": "tn=1"}, "--earlier_set would change nothing: no 'earlier' is chosen"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_anything_is_written(
    negative_set: Path, policy: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        made(policy, tmp_path / "set", negative_set, **options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"end_token_ids": [0, 3]}])
def test_a_set_of_another_tokenizer_is_refused_with_both_hashes(
    negative_set: Path, policy: Path, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "earlier", [], negative_set, an=3)
    known = NegativeSet(str(path)).manifest.job["tokenizer"]
    text = (path / "manifest.json").read_text()
    key, value = next(iter(change.items()))
    if key == "sha256":
        text = text.replace(known["sha256"], str(value))
        said = f"was made with tokenizer {'0' * 16}, this job's reference has tokenizer {known['sha256'][:16]}"
    else:
        text = text.replace('"eos_token_id"', f'"{key}": {value}, "eos_token_id"')
        said = r"continuations end with the ids \[0, 3\], this job's with \[\d+\]"
    (path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=said):
        made(policy, tmp_path / "set", path)


@pytest.mark.seconds
def test_a_plan_counts_it(negative_set: Path, policy: Path, tmp_path: Path) -> None:
    config = make_config(
        PlanConfig, model=str(policy), dataset="facts", split="train", limit=48, strategies="earlier=3",
        earlier_set=str(negative_set), embedder="reference", tokens_per_second=1000, sample=24,
    )  # fmt: skip
    plan = predict(config)
    assert (plan.groups, plan.tokens["sampled"]) == (48, 0)
