"""Generation sets: made once by the real engine, then read; their keys hold all that decides them and nothing else."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.models import load_tokenizer, tokenizer_hash, weights_hash
from data.schema import Group
from evaluation.answers.cache import Store
from evaluation.answers.decoding import parse_decoding
from evaluation.answers.generations import GenerationSet, generate, identify_model, prompt_seed
from negatives_gen.models.engine import Engine, Sample
from tests.support.answering import facts_groups
from tests.support.commands import ROOT

pytestmark = pytest.mark.seconds  # what most of its tests share takes seconds

CONTEXT = 128


class EngineStub:
    """Answers at once with the prompt's first token; for the keys, which no answer decides."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def decode(self, prompts: list[list[int]], **options: Any) -> list[Sample]:
        self.calls.append(options)
        return [Sample([prompt[0]], "a", "length", -1.0, None) for prompt in prompts]


def no_engine() -> Engine:
    raise AssertionError("an engine was started")


@pytest.fixture(scope="module")
def groups(answering_model: Path) -> list[Group]:
    return facts_groups(answering_model, 6)


@pytest.fixture(scope="module")
def identity(answering_model: Path) -> dict[str, str]:
    return identify_model(str(answering_model), tokenizer_hash(load_tokenizer(str(answering_model))))


def make(store: Store, identity: dict[str, str], groups: list[Group], engine: Callable[[], Any], **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "model_identity": identity, "engine_options": {}, "decoding": parse_decoding("sample"), "groups": groups,
        "max_new_tokens": 10, "context": CONTEXT, "seed": 3, "make_engine": engine,
    } | changed  # fmt: skip
    return generate(store, **arguments)


@pytest.mark.parametrize("word", ["greedy", "sample", "topk5-p0.7", "beam2"])
def test_a_set_is_what_the_engine_gives_and_is_made_once(
    tmp_path: Path, engine: Engine, groups: list[Group], identity: dict[str, str], word: str
) -> None:
    store, decoding = Store(str(tmp_path)), parse_decoding(word)
    made: GenerationSet = make(store, identity, groups, lambda: engine, decoding=decoding)
    expected = engine.decode(
        [g.prompt_ids for g in groups],
        max_tokens=[10] * 6,
        seeds=[prompt_seed(3, g.id) for g in groups] if decoding.kind == "sample" else None,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        beams=decoding.beams,
    )
    assert made.ids == [g.id for g in groups]
    assert [(s.ids, s.text, s.finish_reason, s.seed) for s in made.samples] == [
        (s.ids, s.text, s.finish_reason, s.seed) for s in expected
    ]
    assert [s.logp for s in made.samples] == pytest.approx([s.logp for s in expected], abs=1e-3)
    assert make(Store(str(tmp_path)), identity, groups, no_engine, decoding=decoding) == made


def test_an_answer_keeps_within_the_context(
    tmp_path: Path, engine: Engine, groups: list[Group], identity: dict[str, str]
) -> None:
    longest = max(len(g.prompt_ids) for g in groups)
    for word in ("greedy", "beam2"):
        decoding = parse_decoding(word)
        cut = make(
            Store(str(tmp_path)), identity, groups, lambda: engine, decoding=decoding, context=longest + 2,
        )  # fmt: skip
        for group, sample in zip(groups, cut.samples, strict=True):
            limit = min(10, longest + 2 - len(group.prompt_ids))
            assert len(sample.ids) == limit if sample.finish_reason == "length" else len(sample.ids) <= limit
        assert min(len(s.ids) for s in cut.samples) <= 2


def test_a_prompt_without_room_for_an_answer_is_refused_before_an_engine_starts(
    tmp_path: Path, groups: list[Group], identity: dict[str, str]
) -> None:
    with pytest.raises(UserError, match=f"example {groups[0].id} has .* no room for an answer in a context of 3"):
        make(Store(str(tmp_path)), identity, groups, no_engine, context=3)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_decides_a_set_is_in_its_key(
    tmp_path: Path, groups: list[Group], identity: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, engine = Store(str(tmp_path)), EngineStub()
    make(store, identity, groups, lambda: engine)
    other_ids = dataclasses.replace(groups[0], prompt_ids=[*groups[0].prompt_ids, 5])
    cases: tuple[dict[str, Any], ...] = (
        {"model_identity": {**identity, "weights_sha256": "0"}},
        {"model_identity": {**identity, "tokenizer_sha256": "0"}},
        {"model_identity": {**identity, "settings_sha256": "0"}},
        {"engine_options": {"dtype": "bfloat16"}},
        {"decoding": parse_decoding("greedy")},
        {"decoding": parse_decoding("topk5")},
        {"decoding": parse_decoding("topk5-p0.5")},
        {"decoding": parse_decoding("beam2")},
        {"decoding": parse_decoding("beam3")},
        {"groups": groups[:-1]},
        {"groups": groups[::-1]},
        {"groups": [other_ids, *groups[1:]]},
        {"max_new_tokens": 11},
        {"context": CONTEXT - 1},
        {"seed": 4},
    )
    for changed in cases:
        make(store, identity, changed.pop("groups", groups), lambda: engine, **changed)
    assert len(engine.calls) == 1 + len(cases)
    monkeypatch.setattr("evaluation.answers.generations.metadata.version", lambda name: "9.9")
    make(store, identity, groups, lambda: engine)
    assert len(engine.calls) == 2 + len(cases)


@pytest.mark.parametrize(
    ("word", "logp"),
    [("greedy", None), ("sample", None), ("beam2", None), ("topk5", "processed"), ("topk5-p0.7", "processed")],
)
def test_the_key_says_whose_log_probabilities_are_kept_where_a_decoding_cuts_the_distribution(
    tmp_path: Path, groups: list[Group], identity: dict[str, str], word: str, logp: str | None
) -> None:
    made = make(Store(str(tmp_path)), identity, groups, EngineStub, decoding=parse_decoding(word))
    assert made.key.get("logp") == logp
    assert set(made.key) - {"logp"} == {
        "model", "prompts_sha256", "decoding", "max_new_tokens", "context", "seed", "engine"
    }  # fmt: skip


def test_the_key_of_a_generation_set_leaves_out_names_ground_truths_and_a_greedy_seed(
    tmp_path: Path, groups: list[Group], answering_model: Path, identity: dict[str, str]
) -> None:
    store, engine = Store(str(tmp_path / "store")), EngineStub()
    greedy = parse_decoding("greedy")
    made = make(store, identity, groups, lambda: engine, decoding=greedy)
    moved = tmp_path / "another-name"
    shutil.copytree(answering_model, moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "transformers_version": "99", "_name_or_path": "x"}))
    same = identify_model(str(moved), tokenizer_hash(load_tokenizer(str(moved))))
    # A seed draws nothing of a greedy answer; what the ground truth is does not matter either.
    other = [dataclasses.replace(g, response="x", response_ids=[0], split="train") for g in groups]
    assert make(store, same, other, no_engine, decoding=greedy, seed=9).samples == made.samples
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert identify_model(str(moved), tokenizer_hash(load_tokenizer(str(moved)))) != same
    for changed in ({"dtype": "float16"}, {"eos_token_id": [0, 5]}):  # vLLM goes by them, a reference's values do not
        (moved / "config.json").write_text(json.dumps({**config, **changed}))
        assert identify_model(str(moved), tokenizer_hash(load_tokenizer(str(moved)))) != same


def test_weights_are_read_once_as_long_as_their_files_are_untouched(
    answering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = tmp_path / "model", Store(str(tmp_path / "store"))
    shutil.copytree(answering_model, model)
    tokenizer = tokenizer_hash(load_tokenizer(str(model)))
    read: list[str] = []
    monkeypatch.setattr("evaluation.answers.weights.weights_hash", lambda path: read.append(path) or weights_hash(path))
    first = identify_model(str(model), tokenizer, store)
    assert identify_model(str(model), tokenizer, store) == first == identify_model(str(answering_model), tokenizer)
    assert read.count(str(model)) == 1

    weights, times = model / "model.safetensors", (model / "model.safetensors").stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # as many bytes, and the same time of modification
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identify_model(str(model), tokenizer, store)["weights_sha256"] == weights_hash(str(model))
    assert identify_model(str(model), tokenizer, store) != first


def test_seeds_differ_by_prompt_and_by_the_jobs_seed_and_reach_the_engine(
    tmp_path: Path, groups: list[Group], identity: dict[str, str]
) -> None:
    engine = EngineStub()
    make(Store(str(tmp_path)), identity, groups, lambda: engine)
    seeds = engine.calls[0]["seeds"]
    assert seeds == [prompt_seed(3, g.id) for g in groups]
    assert len({*seeds, *(prompt_seed(4, g.id) for g in groups)}) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_nothing_is_kept_of_a_generation_set_that_fails(
    tmp_path: Path, groups: list[Group], identity: dict[str, str]
) -> None:
    def broken() -> Engine:
        raise UserError("vLLM cannot serve 'x'")

    with pytest.raises(UserError, match="cannot serve"):
        make(Store(str(tmp_path)), identity, groups, broken)
    assert list(tmp_path.rglob("*.parquet")) == []


def test_no_secret_of_the_options_is_kept(tmp_path: Path, groups: list[Group], identity: dict[str, str]) -> None:
    options = {"hf_token": "hf_very_secret_indeed", "max_num_seqs": 4}
    made = make(Store(str(tmp_path)), identity, groups, EngineStub, engine_options=options)
    assert made.key["engine"]["options"] == {"hf_token": "***", "max_num_seqs": 4}
    (file,) = tmp_path.rglob("*.parquet")
    assert b"hf_very_secret_indeed" not in file.read_bytes()
    assert "hf_very_secret_indeed" not in str(pq.read_table(file).schema.metadata)


def test_a_kept_set_is_read_without_torch_and_vllm(
    tmp_path: Path, groups: list[Group], identity: dict[str, str]
) -> None:
    make(Store(str(tmp_path)), identity, groups, EngineStub)
    code = f"""
import sys
from data.schema import Group
from evaluation.answers.decoding import parse_decoding
from evaluation.answers.generations import generate
from evaluation.answers.cache import Store
groups = [Group(id, "p", "r", ids, [0]) for id, ids in {[(g.id, g.prompt_ids) for g in groups]!r}]
kept = generate(Store({str(tmp_path)!r}), {identity!r}, {{}}, parse_decoding("sample"), groups, 10, {CONTEXT}, 3, exit)
print(len(kept.samples), *({{"torch", "vllm", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6"
