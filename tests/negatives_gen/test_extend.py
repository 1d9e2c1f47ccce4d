"""`extend`: what is added equals one go, what was there is neither made nor scored again. Real scorer, no Ray."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.manifest import Manifest
from data.schema import Group, group_from_row, groups_to_table
from data.shards import NegativeSet
from data.storage import sha256
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.models.embedder import Embedder
from negatives_gen.verbs.extend import ExtendConfig, extend
from negatives_gen.verbs.verify import VerifyConfig, verify
from tests.support.older_schemas import write_as_schema
from tests.support.stubs import EngineStub, ScorerStub
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 questions, five answers of one word, which no TN can be made of, and a bad row."""
    from data.sources import facts

    records: list[dict[str, Any]] = list(facts.examples()[:28])
    words = "Ivo", "Otto", "Nils", "Ada", "Emil"
    records += [{"prompt": f"Question {i}?", "completion": f" {word}"} for i, word in enumerate(words)]
    records.append({"prompt": "Empty?", "completion": ""})
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def make(reference: Path, rows: Path, tmp_path: Path) -> Maker:
    def made(name: str, strategies: str, batch_size: int = 6, **options: Any) -> Path:
        if "bn=" in strategies:
            options["bn_batch_size"] = batch_size
        if "embedding" in options.get("signals", "embedding"):
            options["embedder"] = "reference"
        config = make_config(
            GenerateConfig,
            model=str(reference), dataset=str(rows), split="all", out=str(tmp_path / name), strategies=strategies,
            groups_per_shard=12, seed=3, **options,
        )  # fmt: skip
        with without_ray():
            generate(config, Components(engine=EngineStub))
        return tmp_path / name

    return made


def extended(path: Path, name: str, components: Components | None = None, **options: Any) -> Path:
    out = path.parent / name
    with without_ray():
        extend(
            str(path), make_config(ExtendConfig, out=str(out), **options), components or Components(engine=EngineStub)
        )
    return out


def without_floats(group: Group) -> Group:
    candidates = [replace(c, reference_logp=None, similarity={}) for c in group.negatives]
    return replace(group, negatives=candidates, reference_logp=None, response_embedding=None)


def check_equal(found: Path, expected: Path) -> None:
    """Same rows, ids, texts and rejects to the letter; same log-probabilities and similarities to rounding."""
    ours, theirs = NegativeSet(str(found)), NegativeSet(str(expected))
    assert ours.manifest.job == theirs.manifest.job
    assert ours.manifest.counts == theirs.manifest.counts
    assert ours.manifest.inputs == theirs.manifest.inputs
    assert list(ours.manifest.counts["rejected_by_reason"]) == list(theirs.manifest.counts["rejected_by_reason"])
    assert ours.manifest.rejects == theirs.manifest.rejects  # its hash: to the letter
    for group, other in zip(ours.groups(), theirs.groups(), strict=True):
        assert without_floats(group) == without_floats(other)
        assert group.response_embedding == pytest.approx(other.response_embedding, abs=1e-5)
        for ours_c, theirs_c in zip([group, *group.negatives], [other, *other.negatives], strict=True):
            assert ours_c.reference_logp == pytest.approx(theirs_c.reference_logp, abs=1e-3)
        for ours_c, theirs_c in zip(group.negatives, other.negatives, strict=True):
            assert ours_c.similarity == pytest.approx(theirs_c.similarity, abs=1e-5)


def test_a_set_of_schema_3_is_extended_to_one_of_today(make: Maker) -> None:
    first = make("first", "bn=2")
    write_as_schema(3, first)
    then = extended(first, "then", strategies="mn=4")
    check_equal(then, make("whole", "bn=2,mn=4"))
    assert NegativeSet(str(then)).manifest.schema_version == 4


@pytest.mark.parametrize(
    ("first", "then"),
    [("bn=2", "mn=4,tn=3"), ("tn=3", "mn=4,bn=2"), ("bn=1,mn=2,tn=3", "mn=4,bn=2"), ("tn=1,mn=4", "tn=3,bn=2")],
)
def test_strategies_and_candidates_added_equal_a_set_made_in_one_go(make: Maker, first: str, then: str) -> None:
    whole = make("whole", "bn=2,mn=4,tn=3")
    assert NegativeSet(str(whole)).manifest.counts["rejected_by_reason"]["too few tn negatives"] == 5
    check_equal(extended(make("first", first), "then", strategies=then, bn_batch_size=6), whole)


def test_mn_of_several_rounds_grows_as_in_one_go(make: Maker) -> None:
    options: dict[str, Any] = {"mn_share": 0.5, "mn_rounds": 3}
    then = extended(make("first", "mn=2,tn=3", **options), "then", strategies="mn=4")
    check_equal(then, make("whole", "mn=4,tn=3", **options))


def test_a_set_from_before_mn_had_rounds_has_one(make: Maker) -> None:
    first = make("first", "mn=1,tn=1")
    assert NegativeSet(str(first)).manifest.job["strategies"]["mn"] == {"count": 1, "mn_share": 0.15}
    with pytest.raises(UserError, match=r"--mn_rounds 2 would change nothing: .* its 'mn' has mn_rounds 1"):
        extended(first, "then", strategies="mn=2", mn_rounds=2)
    check_equal(extended(first, "then", strategies="mn=2", mn_rounds=1), make("whole", "mn=2,tn=1"))


@pytest.mark.parametrize(
    ("first", "then"),
    [("tn=3", "bn=2"), ("bn=2", "tn=3"), ("bn=1,tn=1", "bn=2,tn=3"), ("mn=1,tn=1", "bn=2,mn=4,tn=3")],
)
def test_rows_that_several_strategies_fail_are_rejected_for_the_same_reason_as_in_one_go(
    make: Maker, first: str, then: str
) -> None:
    """BN has two or three rows in a batch, so some rows fail it; of these and of others one-word answers fail TN."""
    counts = {**dict(c.split("=") for c in first.split(",")), **dict(c.split("=") for c in then.split(","))}
    whole = make("whole", ",".join(f"{name}={counts[name]}" for name in sorted(counts)), batch_size=3)
    reasons = NegativeSet(str(whole)).manifest.counts["rejected_by_reason"]
    assert reasons["too few bn negatives"] > 0
    assert 0 < reasons["too few tn negatives"] < 5
    check_equal(extended(make("first", first, batch_size=3), "then", strategies=then, bn_batch_size=3), whole)


def test_a_ranking_signal_added_equals_one_go(make: Maker) -> None:
    added = extended(make("first", "bn=2,tn=1"), "then", signals="rouge")
    check_equal(added, make("whole", "bn=2,tn=1", signals="embedding,rouge"))
    assert NegativeSet(str(added)).signals == ["embedding", "rouge"]


def test_sampled_negatives_are_kept_and_more_are_added_up_to_the_count(make: Maker) -> None:
    first = make("first", "an=2,tn=1")
    before = {g.id: g.negatives for g in NegativeSet(str(first)).groups()}
    negatives = NegativeSet(str(extended(first, "then", strategies="an=5")))
    for group in negatives.groups():
        sampled = [c for c in group.negatives if c.strategy == "an"]
        assert sampled[:2] == before[group.id][:2]
        assert len({c.text for c in sampled}) == 5
        assert [c.strategy for c in group.negatives] == ["an"] * 5 + ["tn"]
        assert all(c.reference_logp is not None and c.similarity.keys() == {"embedding"} for c in group.negatives)
    job = NegativeSet(str(first)).manifest.job
    assert negatives.manifest.job == {
        **job,
        "strategies": {**job["strategies"], "an": {**job["strategies"]["an"], "count": 5}},
    }


def test_engine_options_are_the_manifests_under_the_users_and_are_recorded(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    given: list[dict[str, Any]] = []

    class ListeningEngineStub(EngineStub):
        def __init__(self, model: str, *, options: dict[str, Any]):
            given.append(options)
            super().__init__(model, options=options)

    first = make("first", "an=1", engine={"hf_token": "hf_0", "tokenizer": "/home/ada/draft", "block_size": 16})
    assert NegativeSet(str(first)).manifest.job["engine"] == {
        "hf_token": "***", "tokenizer": "~/draft", "block_size": 16,
    }  # fmt: skip
    components = Components(engine=ListeningEngineStub)
    then = extended(first, "then", components, strategies="an=2", engine={"quantization": "fp8", "block_size": 32})
    assert given == [{"tokenizer": "/home/ada/draft", "block_size": 32, "quantization": "fp8"}]
    assert NegativeSet(str(then)).manifest.job["engine"] == {
        "hf_token": "***", "tokenizer": "~/draft", "block_size": 32, "quantization": "fp8",
    }  # fmt: skip
    assert "the manifest hides engine.hf_token" in caplog.text
    assert "--engine.hf_token" in caplog.text
    with pytest.raises(UserError, match=r"its engine\.quantization is 'fp8'"):
        extended(first, "then", components, strategies="an=2", engine={"block_size": 32})


def test_nothing_is_made_or_scored_again(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by stubs: no engine starts, the scorer and the embedder see new candidates only."""
    scored: list[int] = []
    embedded: list[str] = []

    class CountingEmbedderStub(Embedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            embedded.extend(texts)
            return super().embed(texts)

    class CountingScorerStub(ScorerStub):
        def score(self, groups: Sequence[Any]) -> list[list[float]]:
            scored.extend(len(group.continuations) for group in groups)
            return [[-1.0] * len(group.continuations) for group in groups]

    def no_engine_stub(*_: Any, **__: Any) -> Any:
        raise AssertionError("an engine was started")

    first = make("first", "an=2,bn=1")
    monkeypatch.setattr("negatives_gen.signals.embedding.Embedder", CountingEmbedderStub)
    components = Components(engine=no_engine_stub, scorer=CountingScorerStub)
    added = extended(first, "then", components, signals="rouge")
    assert (scored, embedded) == ([], [])
    before, after = NegativeSet(str(first)), NegativeSet(str(added))
    for group, other in zip(before.groups(), after.groups(), strict=True):
        assert other.reference_logp == group.reference_logp
        for candidate, same in zip(group.negatives, other.negatives, strict=True):
            assert same.similarity["embedding"] == candidate.similarity["embedding"]
    more = NegativeSet(str(extended(first, "more", components, strategies="bn=3")))
    assert scored == [2] * len(before)
    shards = [more.shard(index) for index in range(3)]
    new = [{c.text for g in shard for c in g.negatives[3:]} for shard in shards]  # behind an, an, bn
    assert sorted(embedded) == sorted(text for texts in new for text in texts)


def test_the_old_set_stays_and_the_new_one_names_it(make: Maker) -> None:
    from data.storage import sha256

    first = make("first", "tn=1")
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    negatives = NegativeSet(str(extended(first, "then", strategies="tn=2")))
    assert {path.name: path.read_bytes() for path in first.iterdir()} == files
    assert negatives.manifest.parent == {"name": str(first), "manifest_sha256": sha256(files["manifest.json"])}
    again: list[Manifest] = []
    with without_ray():
        again.append(extend(str(first), make_config(ExtendConfig, out=str(first.parent / "then"), strategies="tn=2")))
    assert again == [negatives.manifest]  # complete already


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to add: give --strategies"),
        ({"strategies": "tn=1"}, "asks for tn=1, the set has 2 already"),
        ({"strategies": "xx=1"}, "unknown strategy 'xx'"),
        ({"signals": "loudness"}, "unknown ranking signal 'loudness'"),
        ({"signals": "rouge", "model": "/no/such/model"}, "'/no/such/model' does not exist"),
        ({"signals": "rouge", "log_format": "xml"}, "--log_format must be text or json, got 'xml'"),
        ({"signals": "rouge", "num_engines": 0}, "--num_engines must be at least 1, got 0"),
        ({"strategies": "bn=2", "bn_batch_size": 64}, "the set's own settings hold, its 'bn' has bn_batch_size 6"),
        (
            {"strategies": "tn=3", "api": {"base_url": "http://h/v1"}},
            r"--api\.\* would change nothing: no 'un'",
        ),
        ({"strategies": "tn=3", "engine": {"seed": 1}}, r"--engine\.\* would change nothing: no 'an' or 'rn' is added"),
        ({"signals": "rouge", "reward_model": "x"}, "--reward_model would change nothing: the new set has no signal"),
        ({"signals": "rouge", "num_engines": 2}, "--num_engines would change nothing: no 'an' or 'rn' is added"),
        ({"strategies": "an=1", "top_k": -1}, "--top_k must be 0"),
    ],
)
def test_an_extension_that_cannot_be_made_is_refused_and_nothing_written(
    make: Maker, options: dict, message: str
) -> None:
    first = make("first", "bn=1,tn=2")
    with pytest.raises(UserError, match=message):
        extended(first, "then", **options)
    assert not (first.parent / "then").exists()


def test_a_set_is_not_extended_into_itself_and_one_that_has_all_already_is_named(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    first = make("first", "tn=1", signals="rouge")
    with pytest.raises(UserError, match=r"--out '.*/first/sub' lies in the set that is extended"):
        extended(first, "first/sub", strategies="tn=2")
    assert not (first / "sub").exists()
    assert "nothing is added" not in caplog.text
    extended(first, "same", strategies="tn=1")
    assert f"nothing is added to '{first}'" in caplog.text


def test_options_that_the_set_has_settled_are_refused_unless_a_new_strategy_takes_them(make: Maker) -> None:
    first = make("first", "an=1", top_k=5)
    for top_k in (7, 50):  # 50 is the default
        with pytest.raises(UserError, match=f"--top_k {top_k} would change nothing: .* its 'an' has top_k 5"):
            extended(first, "then", strategies="an=2", top_k=top_k)
    then = extended(first, "then", strategies="an=2,mn=1", top_k=5, mn_share=0.5)
    strategies = NegativeSet(str(then)).manifest.job["strategies"]
    assert strategies["an"] == {"count": 2, "max_new_tokens": 256, "temperature": 1.0, "top_k": 5}
    assert strategies["mn"] == {"count": 1, "mn_share": 0.5}


def test_a_reference_with_another_configuration_is_refused(make: Maker, reference: Path, tmp_path: Path) -> None:
    path, other = make("first", "tn=1", signals="rouge"), shutil.copytree(reference, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.3}))
    with pytest.raises(UserError, match=r"other numbers would come of the same weights"):
        extended(path, "second", model=str(other), strategies="bn=1")
    assert not (tmp_path / "second").exists()
    with pytest.raises(UserError, match=r"--model is not the set's reference model: '.*' has config\.json"):
        verify(str(path), VerifyConfig(model=str(other)))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([7] * 200, r"a sequence of group \w+ has 2\d\d tokens, the model's context 128"),
        ([10**6], "holds the id 1000000"),
    ],
    ids=["too long", "unknown"],
)
def test_what_the_reference_does_not_take_is_one_line(make: Maker, ids: list[int], said: str) -> None:
    first = make("first", "tn=1", signals="rouge")
    shard = first / "shard-00000.parquet"
    groups = [group_from_row(row) for row in pq.read_table(shard).to_pylist()]
    groups[0].prompt_ids = ids
    pq.write_table(groups_to_table(groups, ["rouge"]), shard)
    manifest = json.loads((first / "manifest.json").read_text())
    manifest["shards"][0].update(bytes=shard.stat().st_size, sha256=sha256(shard.read_bytes()))
    (first / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"shard-00000.parquet of negative set .* cannot be used: .*{said}"):
        extended(first, "then", strategies="tn=2")


def test_a_reference_that_was_saved_again_is_taken(make: Maker, reference: Path, tmp_path: Path) -> None:
    """In the words of an older transformers, which say the same."""
    path, other = make("first", "tn=1", signals="rouge"), shutil.copytree(reference, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    theta, dtype = config.pop("rope_parameters")["rope_theta"], config.pop("dtype")
    again = {**config, "rope_theta": theta, "rope_scaling": None, "torch_dtype": dtype, "use_cache": False}
    (other / "config.json").write_text(json.dumps(again))
    extended(path, "second", model=str(other), strategies="bn=1")
    assert verify(str(path), VerifyConfig(model=str(other))) == []
    NegativeSet(str(path)).check_config(other, "other")


def test_another_model_than_the_reference_is_refused(make: Maker, tmp_path: Path) -> None:
    from tests.support.tiny import save_tiny_model

    first, other = make("first", "tn=1"), save_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="was made with reference model"):
        extended(first, "then", strategies="tn=2", model=str(other))
    with pytest.raises(UserError, match="the set's signal 'embedding' was computed with"):
        extended(first, "then", strategies="tn=2", embedder=str(other))
