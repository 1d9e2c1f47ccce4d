"""Bad input, one kind per test: a row ends as a group or as a reject with its reason, and never ends the job."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets.config
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data.blank import EOS, BlankConfig, write_blank_model
from data.models import load_tokenizer
from data.schema import Group, Reject, groups_to_table, rejects_to_table
from data.sources.examples import Example, open_source
from data.sources.prepare import Prepared, prepare_groups
from data.sources.tasks import task_of
from tests.support.read_examples import load_examples

TASK = "prompt-completion"
MAX_LENGTH = 128
GROUP = None
MEGABYTE = "word " * 200_000
TEMPLATE = """{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif -%}
[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""


class Kind(NamedTuple):
    """A line of the corpus, and the reason it is rejected for, or GROUP."""

    line: bytes
    reason: str | None


def row(prompt: Any = "p", completion: Any = "c", **more: Any) -> bytes:
    """A line of JSON as `json.dumps` writes it: in ASCII, so that a lone surrogate survives as an escape."""
    return json.dumps({"prompt": prompt, "completion": completion, **more}).encode()


def said(role: Any, content: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


KINDS = {
    # Texts that are none
    "empty prompt": Kind(row(""), "empty prompt"),
    "empty response": Kind(row(completion=""), "empty response"),
    "both empty": Kind(row("", ""), "empty prompt"),
    "whitespace prompt": Kind(row(" \t\r\n"), "empty prompt"),
    "whitespace of other scripts": Kind(row(completion="\u3000\u00a0\u2028\u2009"), "empty response"),
    "null prompt": Kind(row(None), "prompt is not text"),
    "null response": Kind(row(completion=None), "response is not text"),
    "no prompt": Kind(b'{"completion": "c"}', "prompt is not text"),
    "no response": Kind(b'{"prompt": "p"}', "response is not text"),
    "no field at all": Kind(b"{}", "prompt is not text"),
    "other fields": Kind(b'{"question": "p", "answer": "c"}', "prompt is not text"),
    "number": Kind(row(7), "prompt is not text"),
    "huge number": Kind(row(completion=10**400), "response is not text"),
    "NaN": Kind(row(float("nan")), "prompt is not text"),
    "infinity": Kind(row(completion=float("-inf")), "response is not text"),
    "truth value": Kind(row(True), "prompt is not text"),
    "object": Kind(row({"text": {"text": ["p"]}}), "prompt is not text"),
    "list as response": Kind(row(completion=["c", 1, None]), "response is not text"),
    # Texts of odd characters
    "lone high surrogate": Kind(row("a\ud83d"), "prompt is not valid Unicode"),
    "lone low surrogate": Kind(row(completion="\ude00a"), "response is not valid Unicode"),
    "surrogates in the wrong order": Kind(row("\ude00\ud83d"), "prompt is not valid Unicode"),
    "surrogate pair": Kind(rb'{"prompt": "pair \ud83d\ude00", "completion": "c"}', GROUP),
    "NUL bytes": Kind(row("a\0b", "\0c"), GROUP),
    "only NUL bytes": Kind(row("\0\0"), GROUP),
    "control characters": Kind(row("a\x01\x08\x1b[31m\x7f"), GROUP),
    "right to left": Kind(row("مرحبا بالعالم", "שלום \u202eעולם\u202c"), GROUP),  # noqa: RUF001  # the letters are the case
    "only emoji": Kind(row("🦊🦉", "👨‍👩‍👧‍👦🇪🇺"), GROUP),
    "stacked accents": Kind(row("Z" + "\u0301" * 20), GROUP),
    "zero-width space only": Kind(row("\u200b"), GROUP),
    "byte order mark only": Kind(row("\ufeff"), GROUP),
    "noncharacters": Kind(row("\uffff\U0010ffff"), GROUP),
    "replacement character": Kind(row("\ufffd"), GROUP),
    "Chinese in UTF-8": Kind('{"prompt": "日本語", "completion": "中文"}'.encode(), GROUP),
    "line separators": Kind('{"prompt": "a\u2028b\u0085c", "completion": "d"}'.encode(), GROUP),
    # Length
    "line of 1 MB": Kind(row(MEGABYTE), "prompt too long"),
    "word of 1 MB": Kind(row("a" * 1_000_000), "prompt too long"),
    "response of 1 MB": Kind(row("of 1 MB", MEGABYTE), "prompt and response too long"),
    "prefix longer than the context": Kind(row("\x02" * (MAX_LENGTH + 1)), "prompt too long"),
    "prefix as long as the context": Kind(row("\x02" * MAX_LENGTH), "prompt too long"),
    "response that does not fit": Kind(row("\x02" * 60, "\x03" * 68), "prompt and response too long"),
    # Special tokens written out
    "only a special token": Kind(row(EOS), "special token in prompt"),
    "only special tokens": Kind(row(completion=EOS * 3), "special token in response"),
    "special token within": Kind(row("see " + EOS + " here"), "special token in prompt"),
    # Repetitions
    "first of two": Kind(row("twice", "same"), GROUP),
    "exact duplicate": Kind(row("twice", "same"), "duplicate"),
    "duplicate that looks different": Kind(rb'{"completion": "same", "prompt": "\u0074wice"}', "duplicate"),
    "same prompt, other response": Kind(row("twice", "other"), GROUP),
    "id of its own": Kind(row("with an id", id="x"), GROUP),
    "duplicate id": Kind(row("with the same id", id="x"), GROUP),
    "id of another type": Kind(row("with an odd id", id={"x": [1]}), GROUP),
    "field given twice": Kind(b'{"prompt": 1, "prompt": "the last counts", "completion": "c"}', GROUP),
    # Lines that hold no row
    "not JSON": Kind(b"prompt: p, completion: c", "not JSON"),
    "cut short": Kind(row("cut short")[:-7], "not JSON"),
    "two objects in a line": Kind(row("a") + row("b"), "not JSON"),
    "Python's quotes": Kind(b"{'prompt': 'p', 'completion': 'c'}", "not JSON"),
    "raw NUL byte": Kind(b'{"prompt": "a\0b", "completion": "c"}', "not JSON"),
    "binary": Kind(b"PAR1\x15\x04\x15", "not JSON"),
    "not UTF-8": Kind('{"prompt": "Füße", "completion": "c"}'.encode("latin-1"), "not UTF-8"),
    "UTF-16": Kind(row("a").decode().encode("utf-16"), "not UTF-8"),
    "list": Kind(b'["p", "c"]', "not a JSON object"),
    "string": Kind(b'"p c"', "not a JSON object"),
    "null": Kind(b"null", "not a JSON object"),
    "number of 5,000 digits": Kind(b'{"prompt": ' + b"1" * 5_000 + b', "completion": "c"}', "not JSON"),
    "nested 100,000 deep": Kind(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
    # Messages
    "messages": Kind(row(said("user", "p"), said("assistant", "c")), GROUP),
    "duplicate messages": Kind(row([*said("user", "p")], said("assistant", "c"), id=1), "duplicate"),
    "no message": Kind(row([], said("assistant", "c")), "empty prompt"),
    "no answer": Kind(row(said("user", "p"), []), "empty response"),
    "blank message": Kind(row(said("user", " "), said("assistant", "c")), "empty prompt"),
    "message without role": Kind(row([{"content": "p"}], said("assistant", "c")), "malformed message"),
    "role that is no text": Kind(row(said(1, "p"), said("assistant", "c")), "malformed message"),
    "message that is none": Kind(row(["p"], said("assistant", "c")), "malformed message"),
    "content in parts": Kind(row(said("user", [{"type": "image"}]), said("assistant", "c")), "prompt is not text"),
    "null content": Kind(row(said("user", "p"), said("assistant", None)), "response is not text"),
    "answer by the user": Kind(row(said("user", "p"), said("user", "c")), "response is not one assistant message"),
    "messages and text": Kind(row(said("user", "p")), "response is not a list of messages"),
    "text and messages": Kind(row("p", said("assistant", "c")), "response is not text"),
    "role the template refuses": Kind(row(said("system", "p"), said("assistant", "c")), "chat template failed"),
    "surrogate in a message": Kind(row(said("user", "\ud800"), said("assistant", "c")), "prompt is not valid Unicode"),
    "special token in a message": Kind(row(said("user", EOS), said("assistant", "c")), "special token in prompt"),
    "special token as role": Kind(row(said(EOS, "p"), said("assistant", "c")), "special token in prompt"),
    "long messages": Kind(row(said("user", "\x02" * 200), said("assistant", "c")), "prompt too long"),
}


def blank_tokenizer(directory: Path) -> Any:
    """The quickstart's: byte-level BPE, whose one special token is EOS."""
    write_blank_model(BlankConfig(out=str(directory), max_length=MAX_LENGTH))
    return load_tokenizer(str(directory))


def prefixing_tokenizer(directory: Path) -> Any:
    """Byte-level BPE as in RoBERTa or Llama 3: a space and a BOS before each text, and control tokens beside EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS, "<s>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(["the word after the word"] * 9, trainer=trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bpe.add_special_tokens([AddedToken("<|turn|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token=EOS, pad_token=EOS)


@pytest.fixture(scope="module", params=[blank_tokenizer, prefixing_tokenizer])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = request.param(tmp_path_factory.mktemp("model"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All kinds in one file, with blank lines between them, which count as no rows."""
    folder = tmp_path_factory.mktemp("corpus")
    path = folder / "bad.jsonl"
    path.write_bytes(b"\n \n".join(kind.line for kind in KINDS.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield str(path)


@pytest.fixture(scope="module")
def examples(corpus: str) -> list[Example]:
    """The examples in the order of KINDS, since a stream keeps the order of its source."""
    return list(open_source(corpus, TASK, streaming=True))


@pytest.fixture(scope="module")
def prepared(examples: list[Example], tokenizer: Any) -> Prepared:
    return prepare_groups(examples, TASK, tokenizer, MAX_LENGTH)


@pytest.fixture(scope="module")
def outcomes(examples: list[Example], prepared: Prepared) -> dict[str, Group | Reject]:
    """What became of each kind: groups and rejects come in the order of the examples."""
    groups, rejects = iter(prepared.groups), iter(prepared.rejects)
    written = {group.id for group in prepared.groups}
    return {
        name: next(groups) if example.problem is None and example.id in written else next(rejects)
        for name, example in zip(KINDS, examples, strict=True)
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_row_is_a_group_or_a_reject_with_its_reason(
    name: str, outcomes: dict[str, Group | Reject], examples: list[Example], tokenizer: Any
):
    outcome = outcomes[name]
    assert outcome.id == examples[list(KINDS).index(name)].id
    if isinstance(outcome, Group):
        assert KINDS[name].reason is GROUP
        assert outcome.response_ids[-1] == tokenizer.eos_token_id
        assert 2 < len(outcome.prompt_ids) + len(outcome.response_ids) <= MAX_LENGTH
    else:
        assert outcome.reason == KINDS[name].reason


def test_the_kinds_of_bad_rows_are_many_and_of_both_outcomes():
    reasons = [kind.reason for kind in KINDS.values()]
    assert len(KINDS) >= 30
    assert reasons.count(GROUP) >= 15
    assert len(set(reasons)) >= 15


def test_read_is_written_plus_rejected_and_ids_are_unique(examples: list[Example], prepared: Prepared):
    assert len(examples) == len(KINDS) == len(prepared.groups) + len(prepared.rejects)
    ids = [group.id for group in prepared.groups]
    assert len(ids) == len(set(ids)) == [kind.reason for kind in KINDS.values()].count(GROUP)


def test_groups_and_rejects_of_bad_rows_can_be_written(examples: list[Example], prepared: Prepared, tmp_path: Path):
    pq.write_table(groups_to_table(prepared.groups, ["embedding"]), tmp_path / "groups.parquet")
    pq.write_table(rejects_to_table(prepared.rejects), tmp_path / "rejects.parquet")
    assert pq.read_table(tmp_path / "groups.parquet")["prompt"].to_pylist() == [g.prompt for g in prepared.groups]
    assert pq.read_table(tmp_path / "rejects.parquet")["prompt"].to_pylist() == [r.prompt for r in prepared.rejects]
    assert max(len(r.prompt) + len(r.detail) for r in prepared.rejects) <= 400
    for example in examples:  # stage 1 stages the examples of a shard as JSON
        staged = json.loads(json.dumps(dataclasses.asdict(example)))
        assert Example(**{**staged, "problem": example.problem}) == example


def test_a_table_gives_the_same_examples_as_a_stream(corpus: str, examples: list[Example]):
    def contents(examples: list[Example]) -> list[Any]:
        return sorted((e.id, repr(e.problem), repr(e.prompt), repr(e.response)) for e in examples)

    source = open_source(corpus, TASK)
    found = list(source)
    assert source.num_examples == len(KINDS)
    assert contents(found) == contents(examples)
    assert list(source) == found


@pytest.mark.parametrize("task", ["dolly", "conversational", "continuation"])
def test_each_task_survives_the_values_of_bad_rows(task: str, tokenizer: Any, tmp_path: Path):
    values = [json.loads(kind.line) for kind in KINDS.values() if kind.reason not in ("not JSON", "not UTF-8")]
    fields = [value["prompt"] for value in values if isinstance(value, dict) and "prompt" in value]
    fields = [field[:1000] if isinstance(field, str) else field for field in fields]
    columns = (*task_of(task).columns, *task_of(task).optional)
    path = tmp_path / "values.jsonl"
    path.write_text("".join(json.dumps(dict.fromkeys(columns, field)) + "\n" for field in fields))
    groups, rejects, truncated = prepare_groups(load_examples(str(path), task), task, tokenizer, 512)
    assert len(fields) == len(groups) + len(rejects)
    reasons = Counter(reject.reason for reject in rejects)
    if task == "dolly":
        assert "مرحبا بالعالم" in {group.response for group in groups}
        assert reasons["prompt too long"] == 2
    elif task == "continuation":
        ids = [group.prompt_ids + group.response_ids for group in groups]
        assert "مرحبا بالعالم" in {tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids}
        assert truncated >= 1
    else:
        assert reasons["prompt is not a list of messages"] > 40
        assert groups == []


def test_nesting_at_the_edge_of_what_python_takes_costs_rows_only(tmp_path: Path, tokenizer: Any):
    depths = [*range(300, 1100, 20), 5000]
    lines = [row("good")] + [b'{"prompt": ' + b"[" * n + b"]" * n + b', "completion": "c"}' for n in depths]
    path = tmp_path / "deep.jsonl"
    path.write_bytes(b"\n".join(lines))
    for streaming in (False, True):
        examples = list(open_source(str(path), TASK, streaming=streaming))
        groups, rejects, _ = prepare_groups(examples, TASK, tokenizer, MAX_LENGTH)
        assert (len(groups), len(rejects)) == (1, len(depths))


def test_parquet_columns_of_other_types_and_broken_text_cost_rows_only(tmp_path: Path, tokenizer: Any):
    texts = pc.cast(
        pa.array([b"good", b"\xff\xfe", b"fine"]), options=pc.CastOptions(pa.string(), allow_invalid_utf8=True)
    )
    columns = {
        "binary": pa.array([b"x", b"\xff", None]),
        "struct": pa.array([{"a": 1}, None, {"a": 2}]),
        "timestamp": pa.array([0, 1, None], pa.timestamp("s")),
        "decimal": pa.array([1, 2, None], pa.decimal128(5, 2)),
        "text": texts,
    }
    reasons = {}
    for name, column in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": column, "completion": ["c", "d", "e"]}), path)
        examples = load_examples(str(path), TASK)
        json.dumps([dataclasses.asdict(example) for example in examples])
        groups, rejects, _ = prepare_groups(examples, TASK, tokenizer, MAX_LENGTH)
        assert len(groups) + len(rejects) == 3
        reasons[name] = [reject.reason for reject in rejects]
    assert reasons.pop("text") == ["not UTF-8"]
    assert reasons == {name: ["prompt is not text"] * 3 for name in columns if name != "text"}
