"""data/sources.py, tasks.py, prepare.py, identity.py and blank.py: from files to token ids and hashes."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import blank, identity
from data.blank import BlankConfig, write_blank_model
from data.errors import UserError
from data.identity import check_model, context_length, load_tokenizer, tokenizer_hash, weights_hash
from data.prepare import describe_rejects, prepare_groups, require_groups
from data.schema import example_id
from data.sources import Example, fingerprint, load_examples, split_examples
from data.tasks import dolly
from tests.tiny import save_tiny_model

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
TASK = "prompt-completion"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return load_tokenizer(str(model))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def write(path: Path, content: str | list[dict]) -> str:
    """A file of one of the supported formats, from rows or from its raw text."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(content), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def example(prompt: Any, response: Any) -> Example:
    return Example(example_id(prompt, response), prompt, response, "test")


# Sources and splits


def test_dollys_15011_rows_split_into_7505_and_7506_whatever_their_order(tmp_path: Path):
    rows = [{"instruction": f"Do {i}.", "context": "", "response": f"Done {i}."} for i in range(15_011)]
    path = write(tmp_path / "a.jsonl", rows)
    halves = {split: load_examples(path, "dolly", split) for split in ("train", "test", "all")}
    random.Random(0).shuffle(rows)
    other = write(tmp_path / "b.jsonl", rows)

    assert {split: len(half) for split, half in halves.items()} == {"train": 7505, "test": 7506, "all": 15_011}
    assert halves["all"][::2] == [*halves["train"], halves["test"][-1]]
    assert halves["all"][1::2] == halves["test"][:-1]
    assert {split: {e.split for e in halves[split]} for split in ("train", "test")} == {
        "train": {"train"},
        "test": {"test"},
    }
    assert {e.id for e in halves["train"]}.isdisjoint(e.id for e in halves["test"])
    assert halves["all"] == load_examples(other, "dolly")
    in_train = {e.id for e in halves["train"]}
    head = [example_id(*dolly({"instruction": f"Do {i}.", "response": f"Done {i}."})) for i in range(1000)]
    assert 400 < sum(identifier in in_train for identifier in head) < 600


def test_limit_keeps_the_first_examples_of_the_split(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", ROWS)
    whole = load_examples(path, TASK)
    assert load_examples(path, TASK, limit=2) == whole[:2]
    assert [e.split for e in whole] == ["train", "test", "train", "test", "test"]
    assert load_examples(path, TASK, "test", limit=99) == split_examples(whole, "test")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_every_file_format_gives_the_same_examples(tmp_path: Path, name: str):
    found = load_examples(write(tmp_path / name, ROWS), TASK)
    assert {(e.prompt, e.response) for e in found} == {(row["prompt"], row["completion"]) for row in ROWS}
    assert [e.id for e in found] == [example_id(e.prompt, e.response) for e in found]


def test_the_cells_of_a_csv_stay_text(tmp_path: Path):
    cells = ["None", "N/A", "null", "nan", "", "text"]
    path = write(tmp_path / "a.csv", "prompt,completion\n" + "".join(f"p,{cell}\n" for cell in cells))
    assert sorted(e.response for e in load_examples(path, TASK)) == sorted(cells)


def test_a_path_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", ROWS)
    assert len(load_examples("~/a.jsonl", TASK)) == len(ROWS)


def test_exact_duplicates_across_the_boundary_leave_one_held_out_group(tmp_path: Path, tokenizer: Any):
    rows = [{"prompt": "p", "completion": "c"}] * 4
    examples = load_examples(write(tmp_path / "a.jsonl", [*rows, *ROWS[:2]]), TASK)
    groups, rejects = prepare_groups(examples, tokenizer, 128)
    assert {e.split for e in examples if e.prompt == "p"} == {"train", "test"}
    assert [g.split for g in groups if g.prompt == "p"] == ["test"]
    assert [r.reason for r in rejects] == ["duplicate"] * 3


def test_the_embedded_world_needs_no_file():
    train, test = load_examples("facts", TASK, "train"), load_examples("facts", TASK, "test")
    assert abs(len(train) - len(test)) <= 1
    assert train[0].prompt.startswith("Question: ")


def test_the_fingerprint_depends_on_the_examples_and_their_order():
    first, second = example("a", "b"), example("c", "d")
    prints = {fingerprint(e) for e in ([first, second], [second, first], [first])}
    assert len(prints) == 3
    assert fingerprint([first]) == fingerprint([example("a", "b")])


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("a.txt", "x", "expected a file ending in .jsonl, .json, .parquet, .csv."),
        ("a.jsonl", "", "has no rows."),
        ("a.jsonl", "\n\n", "has no rows."),
        ("a.csv", "prompt,completion\n", "has no rows."),
        ("a.json", "[]", "has no rows."),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": \n', "as jsonl: JSON parse error"),
        ("a.parquet", "no parquet", "as parquet: Parquet"),
        ("a.jsonl", '{"prompt": "a"}\n', "has no column 'completion', which task 'prompt-completion' needs; it has:"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line_with_its_path(tmp_path: Path, name: str, content: str, phrase: str):
    path = write(tmp_path / name, content)
    message = refusal(lambda: load_examples(path, TASK))
    assert f"'{path}'" in message
    assert phrase in message
    assert "\n" not in message


@pytest.mark.parametrize("path", ["absent.jsonl", "/absent/file", "./absent"])
def test_a_missing_file_is_refused_without_asking_the_hub(path: str):
    assert refusal(lambda: load_examples(path, TASK)).startswith(f"data file '{path}' does not exist.")


def test_a_directory_is_refused_saying_what_to_give(tmp_path: Path):
    message = refusal(lambda: load_examples(str(tmp_path), TASK))
    said = f"data set '{tmp_path}' is a directory. Give one file, ending in .jsonl, .json, .parquet, .csv, or a hub id."
    assert message == said


def test_an_unreachable_hub_data_set_is_refused_also_if_the_client_says_nothing(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refusal(lambda: load_examples("someone/data", TASK))
    assert "data set 'someone/data' is neither 'facts', nor a local file, nor a hub data set" in message
    assert "(ConnectionError)" in message


def test_unknown_names_and_limits_are_refused():
    assert "unknown task 'doly'. Did you mean 'dolly'?" in refusal(lambda: load_examples("facts", "doly"))
    assert "unknown split 'dev'. Use one of train, test, all." in refusal(lambda: load_examples("facts", TASK, "dev"))
    assert "limit must be at least 1, got 0" in refusal(lambda: load_examples("facts", TASK, limit=0))


# Tasks


def test_the_dolly_template_is_databricks_own():
    row = {"instruction": " Name it. ", "context": "A cat.\n", "response": "\nCat "}
    assert dolly(row) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName it.\n\nInput:\nA cat.\n\n### Response:\n",
        "Cat",
    )


@pytest.mark.parametrize("context", [{}, {"context": None}, {"context": " \n"}])
def test_without_a_context_the_template_has_no_input(context: dict[str, Any]):
    prompt, _ = dolly({"instruction": "Do {it}.", "response": "x", **context})
    assert prompt.endswith("### Instruction:\nDo {it}.\n\n### Response:\n")


def test_dolly_leaves_unusable_texts_to_prepare():
    assert dolly({"instruction": " ", "response": None}) == ("", None)
    assert dolly({"instruction": None, "response": 3}) == (None, 3)


# Text to tokens


def test_prompt_and_response_are_tokenised_apart_and_the_response_ends_with_eos(tokenizer: Any):
    word = max((t for t in tokenizer.get_vocab() if t.isalpha() and t.isascii()), key=len)
    prompt, response = word[:2], word[2:]
    assert len(tokenizer(prompt + response)["input_ids"]) == 1
    [group], rejects = prepare_groups([example(prompt, response)], tokenizer, 128)
    assert group.prompt_ids == tokenizer(prompt)["input_ids"]
    assert group.response_ids == [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    assert (group.id, group.prompt, group.response) == (example_id(prompt, response), prompt, response)
    assert (group.split, group.negatives, group.reference_logp, rejects) == ("test", [], None, [])


@pytest.mark.parametrize(
    ("prompt", "response", "reason", "detail"),
    [
        (None, "a", "prompt is not text", "it is NoneType"),
        ("a", 3, "response is not text", "it is int"),
        (" \n", "a", "empty prompt", ""),
        ("a", "", "empty response", ""),
        ("a", "\ud800", "response is not valid Unicode", "surrogates not allowed"),
        ("\x00" * 8, "a", "prompt too long", "8 tokens, context 8"),
        ("\x00" * 4, "\x00" * 4, "prompt and response too long", "4 + 5 tokens, context 8"),
    ],
)
def test_an_unusable_row_is_rejected_with_reason_and_detail(
    tokenizer: Any, prompt: Any, response: Any, reason: str, detail: str
):
    groups, [reject] = prepare_groups([example(prompt, response)], tokenizer, 8)
    assert groups == []
    assert (reject.reason, reject.detail, reject.prompt) == (reason, detail, str(prompt))
    assert reject.id == example_id(prompt, response)


def test_a_row_that_just_fits_is_kept(tokenizer: Any):
    [group], rejects = prepare_groups([example("\x00" * 4, "\x00" * 3)], tokenizer, 8)
    assert (len(group.prompt_ids), len(group.response_ids), rejects) == (4, 4, [])


class Words:
    """A tokenizer that puts a BOS before a prompt, and gives <unk> for a word and nothing for punctuation."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 2, 0
    all_special_ids = (0, 1, 2, 3)
    vocabulary = ("<unk>", "<s>", "</s>", "<tool>", "a", "b")

    def __init__(self, adds_bos: bool = True):
        self.adds_bos = adds_bos

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        bos = [self.bos_token_id] if self.adds_bos and add_special_tokens else []
        return {"input_ids": [bos + [self._id(word) for word in text.split() if word != "."] for text in texts]}

    def _id(self, word: str) -> int:
        return self.vocabulary.index(word) if word in self.vocabulary else self.unk_token_id

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.vocabulary[i] for i in ids]


@pytest.mark.parametrize(("prompt", "response", "reason"), [(".", "b", "empty prompt"), ("a", ".", "empty response")])
def test_a_text_without_tokens_is_rejected(prompt: str, response: str, reason: str):
    _, [reject] = prepare_groups([example(prompt, response)], Words(adds_bos=False), 8)
    assert (reject.reason, reject.detail) == (reason, "the tokenizer gives no token for it")


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        (f"a {blank.EOS} b", "c", "special token in prompt"),
        (blank.EOS, "c", "special token in prompt"),
        ("a", f"b{blank.EOS}c", "special token in response"),
        ("a", f"b{blank.EOS}", "special token in response"),
    ],
)
def test_a_special_token_written_out_in_a_text_is_rejected(tokenizer: Any, prompt: str, response: str, reason: str):
    assert tokenizer.is_fast
    groups, [reject] = prepare_groups([example(prompt, response)], tokenizer, 128)
    assert (groups, reject.reason, reject.detail) == ([], reason, blank.EOS)


def test_what_the_tokenizer_adds_itself_and_unknown_words_are_no_written_special_tokens():
    rows = [("a new", "new b"), ("<s> a <tool>", "b"), ("a", "</s> b")]
    [group], rejects = prepare_groups([example(*row) for row in rows], Words(), 8)
    assert (group.prompt_ids, group.response_ids) == ([1, 4, 0], [0, 5, 2])
    assert [(r.reason, r.detail) for r in rejects] == [
        ("special token in prompt", "<s> <tool>"),
        ("special token in response", "</s>"),
    ]


def test_rows_read_are_groups_plus_rejects_in_order_and_a_duplicate_is_rejected(tokenizer: Any):
    rows = [("a", "b"), ("a", ""), ("a", "b"), ("a", "c"), ("x" * 999, "c")]
    groups, rejects = prepare_groups([example(*row) for row in rows], tokenizer, 128)
    assert [(g.prompt, g.response) for g in groups] == [("a", "b"), ("a", "c")]
    assert [r.reason for r in rejects] == ["empty response", "duplicate", "prompt too long"]
    assert len(rejects[2].prompt) == 200


def test_no_usable_row_is_an_error_that_says_why(tokenizer: Any):
    groups, rejects = prepare_groups([example("a", ""), example("b", ""), example(None, "c")], tokenizer, 8)
    message = refusal(lambda: require_groups(groups, rejects, "'file'"))
    said = "3 rejected (2 empty response; 1 prompt is not text: it is NoneType)"
    assert message == f"no usable row in 'file': {said}. Fix the data or choose other rows."
    assert describe_rejects([]) == "0 rejected"
    good, _ = prepare_groups([example("a", "b")], tokenizer, 8)
    require_groups(good, [], "'file'")


# Identity


def test_the_weights_hash_ignores_sharding_and_sees_one_changed_weight(model: Path, tmp_path: Path):
    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    assert weights_hash(str(tmp_path / "sharded")) == weights_hash(str(model))
    loaded.model.norm.weight.data[0] += 1e-6
    loaded.save_pretrained(tmp_path / "changed")
    assert weights_hash(str(tmp_path / "changed")) != weights_hash(str(model))


def test_only_the_weights_that_transformers_loads_are_hashed(model: Path, tmp_path: Path):
    loaded, expected = AutoModelForCausalLM.from_pretrained(model), weights_hash(str(model))
    loaded.save_pretrained(tmp_path, max_shard_size="100KB")
    for name in ("model-stale.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"not ours")
    assert weights_hash(str(tmp_path)) == expected  # the index names the files

    whole, index = (model / "model.safetensors").read_bytes(), tmp_path / "model.safetensors.index.json"
    (tmp_path / "model.safetensors").write_bytes(whole)
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.unlink()
    assert AutoModelForCausalLM.from_pretrained(tmp_path)
    assert weights_hash(str(tmp_path)) == expected  # the index is an earlier save's

    (tmp_path / "model.safetensors").unlink()
    assert "names model-00001-of-" in refusal(lambda: weights_hash(str(tmp_path)))
    for content in ("{", "{}", "[]"):
        index.write_text(content)
        assert str(index) in refusal(lambda: weights_hash(str(tmp_path)))
    index.unlink()
    (tmp_path / "model_custom.safetensors").write_bytes(whole)
    assert weights_hash(str(tmp_path)) == expected  # the adapter is passed over
    (tmp_path / "model_custom.safetensors").unlink()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    assert weights_hash(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"\x02\0\0\0\0\0\0\0\xff\xff"]
)
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors' is no safetensors file" in refusal(lambda: weights_hash(str(tmp_path)))


def test_a_weights_file_that_is_cut_short_is_refused(model: Path, tmp_path: Path):
    content = (model / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-4])
    assert "is cut short: tensor '" in refusal(lambda: weights_hash(str(tmp_path)))


def test_the_tokenizer_hash_survives_calls_and_saving_and_sees_a_new_token(model: Path, tmp_path: Path):
    tokenizer = load_tokenizer(str(model))
    fresh = tokenizer_hash(tokenizer)
    tokenizer(["a", "a long text"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == fresh
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == fresh
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != fresh


def test_check_model_says_which_part_is_missing(tmp_path: Path):
    path = str(tmp_path)
    assert f"model '{path}' has no config.json" in refusal(lambda: check_model(path))
    (tmp_path / "config.json").write_text('{"n_positions": 7}')
    assert f"model '{path}' has no tokenizer" in refusal(lambda: check_model(path))
    (tmp_path / "tokenizer.json").write_text("{")
    assert f"model '{path}' has no *.safetensors weights" in refusal(lambda: check_model(path))
    assert check_model(path, needs_weights=False) == tmp_path
    assert f"the tokenizer of '{path}' cannot be read" in refusal(lambda: load_tokenizer(path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert check_model(path) == tmp_path
    assert context_length(path) == 7


def test_a_tokenizer_without_eos_is_refused(model: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert "has no EOS token" in refusal(lambda: load_tokenizer(str(tmp_path)))


def test_a_config_without_a_context_length_is_refused(tmp_path: Path):
    for content in ("{}", '{"text_config": null}', '{"max_position_embeddings": "long"}'):
        (tmp_path / "config.json").write_text(content)
        assert "does not say its context length" in refusal(lambda: context_length(str(tmp_path)))


def test_the_context_length_may_stand_in_the_text_config(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 5}}')
    assert context_length(str(tmp_path)) == 5
    (tmp_path / "config.json").write_text('{"text_config": null, "n_positions": 6}')
    assert context_length(str(tmp_path)) == 6


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_config_is_refused_by_path(tmp_path: Path, content: str):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="latin-1")
    message = refusal(lambda: context_length(str(tmp_path)))
    assert message.startswith(f"'{path}'")
    assert message.endswith("Copy the file again.")


def test_a_model_that_is_nowhere_is_refused(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "model './absent' does not exist" in refusal(lambda: check_model("./absent"))
    assert "hub model that can be reached (ConnectionError)" in refusal(lambda: identity.model_directory("some/one"))


# The blank model


def test_a_blank_model_has_a_lossless_tokenizer_and_a_config_that_agree(tmp_path: Path):
    write_blank_model(BlankConfig(out=str(tmp_path), vocab_size=400, max_length=99))
    tokenizer = load_tokenizer(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) == 400
    assert context_length(str(tmp_path)) == tokenizer.model_max_length == 99
    assert config["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(blank.EOS)
    text = " Füße\n\t日本 don't ."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert not list(tmp_path.glob("*.safetensors"))


def test_heads_that_do_not_divide_the_width_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--out", str(tmp_path / "m"), "--hidden_size", "100", "--num_heads", "3"]
    assert blank.main(argv) == 2
    assert capsys.readouterr().err == "error: hidden_size 100 is not divisible by num_heads 3.\n"
    assert not (tmp_path / "m").exists()
