"""`export`: the texts of a set for other trainers, and TRL's own DPOTrainer on them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.command.errors import UserError
from data.command.options import make_config
from data.models import load_tokenizer
from data.schema import Candidate, Group, groups_to_table
from data.shards import NegativeSet
from data.storage import sha256
from negatives_gen.verbs.export import ExportConfig, export, main

PREFERENCE = "trl-preference"


def groups_of(path: Path) -> list[Group]:
    return list(NegativeSet(str(path)).groups())


def pairs_of(path: Path) -> list[tuple[Group, Candidate]]:
    return [(group, candidate) for group in groups_of(path) for candidate in group.negatives]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(negative_set: Path, out: Path, format: str, **options: Any) -> list[dict[str, Any]]:
    export(str(negative_set), make_config(ExportConfig, format=format, out=str(out), **options))
    return lines(out)


def test_each_format_has_its_trainers_columns(negative_set: Path, tmp_path: Path) -> None:
    pairs, groups = pairs_of(negative_set), groups_of(negative_set)
    assert len(pairs) == 144
    preference = [{"prompt": g.prompt, "chosen": g.response, "rejected": c.text} for g, c in pairs]
    alpaca = [{"instruction": g.prompt, "input": "", "chosen": g.response, "rejected": c.text} for g, c in pairs]
    completion = [{"prompt": g.prompt, "completion": g.response} for g in groups]
    expected = {
        PREFERENCE: preference,
        "openrlhf": preference,
        "llama-factory": alpaca,
        "trl-sft": completion,
    }
    for format, rows in expected.items():
        assert written(negative_set, tmp_path / f"{format}.jsonl", format) == rows
    eos = load_tokenizer(NegativeSet(str(negative_set)).manifest.job["model"]["name"]).eos_token
    assert eos not in (tmp_path / f"{PREFERENCE}.jsonl").read_text()


def test_parquet_holds_the_same_rows(negative_set: Path, tmp_path: Path) -> None:
    export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(tmp_path / "pairs.parquet")))
    rows = written(negative_set, tmp_path / "pairs.jsonl", PREFERENCE)
    assert pq.read_table(tmp_path / "pairs.parquet").to_pylist() == rows


def test_llama_factory_finds_the_file_by_its_entry(negative_set: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
    export(str(negative_set), ExportConfig(format="llama-factory", out=str(tmp_path / "pairs.jsonl")))
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == {
        "other": {"file_name": "other.json"},
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
        },
    }


def test_use_takes_the_first_negatives_and_rank_by_orders_them(negative_set: Path, tmp_path: Path) -> None:
    rows = written(negative_set, tmp_path / "first.jsonl", PREFERENCE, use="an=2")
    assert [row["rejected"] for row in rows] == [c.text for g in groups_of(negative_set) for c in g.negatives[:2]]
    rows = written(negative_set, tmp_path / "ranked.jsonl", PREFERENCE, use="an=2", rank_by="embedding")
    expected = []
    for group in groups_of(negative_set):
        first, second = group.negatives[:2]
        swap = (second.similarity["embedding"] or 0.0) > (first.similarity["embedding"] or 0.0)
        expected += [second.text, first.text] if swap else [first.text, second.text]
    assert [row["rejected"] for row in rows] == expected


def test_a_folder_gets_a_file_named_after_the_split_and_a_url_the_same_bytes(
    negative_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(negative_set), "--format", "trl-sft", "--out", str(tmp_path / "out")]) == 0
    assert f"{tmp_path}/out/train.jsonl: 48 rows as trl-sft\n" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]
    export(str(negative_set), ExportConfig(format="trl-sft", out="memory://exported/sft.jsonl"))
    with fsspec.open("memory://exported/sft.jsonl", "rb") as file:
        assert file.read() == (tmp_path / "out/train.jsonl").read_bytes()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "trl"}, "unknown --format 'trl'. Did you mean 'trl-sft'?"),
        ({"use": "an=4"}, "--use asks for an=4, but negative set"),
        ({"use": "bn=1"}, "--use asks for bn=1, but negative set"),
        (
            {"use": "bn=1, an=2:hard"},
            "--use 'an=2:hard': ways to choose, as ':hard', are the trainer's; an export takes the first ones. "
            "Write an=2.",
        ),
        ({"split": "test"}, "holds no groups of split 'test'"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"rank_by": "rouge"}, "--rank_by asks for 'rouge', but negative set"),
        ({"format": "trl-sft", "use": "an=1"}, "leave out --use and --rank_by"),
        ({"out": "pairs.csv"}, "must end in .jsonl or .parquet"),
    ],
)
def test_an_impossible_export_is_refused_and_nothing_is_written(
    negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        export(str(negative_set), make_config(ExportConfig, **{"format": PREFERENCE, "out": "pairs.jsonl", **options}))
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_set_leaves_no_half_a_file_and_the_old_one_in_place(negative_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(negative_set, tmp_path / "set"))
    content = bytearray((copy / "shard-00001.parquet").read_bytes())
    content[50] ^= 1
    (copy / "shard-00001.parquet").write_bytes(content)
    export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(tmp_path / "out/pairs.jsonl")))
    old = (tmp_path / "out/pairs.jsonl").read_text()
    with pytest.raises(UserError, match=r"shard-00001.parquet of negative set .* is damaged"):
        export(str(copy), ExportConfig(format=PREFERENCE, out=str(tmp_path / "out/pairs.jsonl")))
    assert [(p.name, p.read_text()) for p in (tmp_path / "out").iterdir()] == [("pairs.jsonl", old)]
    with pytest.raises(UserError, match="lies in the negative set itself"):
        export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(negative_set / "pairs.jsonl")))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
@pytest.mark.parametrize(
    "held", ["", "text", "null", '{"prompt": "p", "chosen": "c", "rejected": "r"}', '{"prompt": 1}']
)
def test_a_file_that_no_export_of_this_set_wrote_stays(
    negative_set: Path, tmp_path: Path, name: str, held: str
) -> None:
    file = tmp_path / name
    file.write_text(held)
    with pytest.raises(UserError, match="is there already, and not of this command"):
        export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(file)))
    assert file.read_text() == held


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_an_earlier_export_of_the_set_is_replaced(negative_set: Path, tmp_path: Path, name: str) -> None:
    file = str(tmp_path / name)
    for use in ("an=3", "an=1"):
        done = export(str(negative_set), make_config(ExportConfig, format=PREFERENCE, out=file, use=use))
    assert done.rows == 48
    assert len(groups_of(negative_set)) == 48


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_an_export_with_a_row_of_ones_own_stays(negative_set: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(file)))
    rows = pq.read_table(file).to_pylist() if name.endswith(".parquet") else list(map(json.loads, file.open()))
    for changed in ([*rows, {**rows[0], "prompt": "mine"}], [rows[0], {**rows[1], "chosen": "mine"}, *rows[2:]]):
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(changed), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in changed))
        before = file.read_bytes()
        with pytest.raises(UserError, match="is there already, and not of this command"):
            export(str(negative_set), ExportConfig(format=PREFERENCE, out=str(file)))
        assert file.read_bytes() == before


def test_a_link_into_the_set_is_followed(negative_set: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(negative_set, tmp_path / "set"))
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    (tmp_path / "folder").symlink_to(copy)
    (tmp_path / "pairs.parquet").symlink_to(copy / "shard-00000.parquet")
    for out in ("folder/pairs.jsonl", "folder/", "pairs.parquet"):
        with pytest.raises(UserError, match="lies in the negative set itself"):
            export(str(copy), ExportConfig(format=PREFERENCE, out=f"{tmp_path}/{out}"))
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_another_entry_of_dataset_info_stays(negative_set: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"pairs": {"file_name": "other.json"}}')
    with pytest.raises(UserError, match="has another data set 'pairs' already"):
        export(str(negative_set), ExportConfig(format="llama-factory", out=str(tmp_path / "pairs.jsonl")))
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize("content", [b'{"mine": {"text": "a\\ud800b\\u00e9"}}', b'{"mine": "\xc3\xa9"}'])
def test_an_entry_of_dataset_info_stays_whatever_it_holds(content: bytes, negative_set: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_bytes(content)
    export(str(negative_set), ExportConfig(format="llama-factory", out=str(tmp_path / "ours.jsonl")))
    found = json.loads((tmp_path / "dataset_info.json").read_bytes())
    assert found.pop("ours")["ranking"]
    assert found == json.loads(content)


def test_a_dataset_info_that_is_nested_without_end_is_one_line(negative_set: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match=r"is no JSON object\. Move it away, or choose another --out\.$"):
        export(str(negative_set), ExportConfig(format="llama-factory", out=str(tmp_path / "ours.jsonl")))


def three_inexact(negative_set: Path, folder: Path) -> Path:
    """A copy of a set in whose first shard a negative has no EOS, one is spelled letter by letter, and a truth too."""
    copy = Path(shutil.copytree(negative_set, folder / "set"))
    groups = NegativeSet(str(copy)).shard(0)
    tokenizer = load_tokenizer(NegativeSet(str(copy)).manifest.job["model"]["name"])

    def letters(text: str) -> list[int]:
        spelled = [i for letter in text for i in tokenizer(letter, add_special_tokens=False)["input_ids"]]
        assert tokenizer.decode(spelled) == text
        return [*spelled, tokenizer.eos_token_id]

    groups[0].negatives[0].ids.pop()
    groups[1].negatives[1].ids = letters(groups[1].negatives[1].text)
    groups[2].response_ids = letters(groups[2].response)  # counts for each of its three pairs
    pq.write_table(groups_to_table(groups, ["embedding"]), copy / "shard-00000.parquet")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = sha256((copy / "shard-00000.parquet").read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.seconds
def test_trl_reads_the_pairs_and_starts_at_log_2(
    negative_set: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where texts tokenise back to their ids TRL trains on the set's very tokens; the command counts the others."""
    from datasets import Dataset, load_dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    path, out = three_inexact(negative_set, tmp_path), tmp_path / "pairs.jsonl"
    assert main([str(path), "--format", PREFERENCE, "--out", str(out)]) == 0
    assert "144 rows as trl-preference\n5 rows tokenise to other ids than the set's" in capsys.readouterr().out
    loaded = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, Dataset)
    args = DPOConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=144, logging_steps=1, use_cpu=True,
        bf16=False, report_to=[], save_strategy="no", max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    model, frozen = (AutoModelForCausalLM.from_pretrained(reference, dtype="float32") for _ in range(2))
    tokenizer = load_tokenizer(str(reference))
    trainer = DPOTrainer(model, frozen, args=args, train_dataset=loaded, processing_class=tokenizer)

    pairs, tokenised = pairs_of(path), cast(Any, trainer.train_dataset)
    others = [
        index
        for index, ((group, negative), row) in enumerate(zip(pairs, tokenised, strict=True))
        if [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
        != [group.prompt_ids, group.response_ids, negative.ids]
    ]
    assert others == [0, 4, 6, 7, 8]

    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # The set's own log-probabilities, made from the ids that the texts were written from.
    stored = pairs_of(negative_set)
    truths = [group.reference_logp or 0.0 for group, _ in stored]
    logps = [negative.reference_logp or 0.0 for _, negative in stored]
    assert first["logps/chosen"] == pytest.approx(sum(truths) / 144, abs=1e-3)
    assert first["logps/rejected"] == pytest.approx(sum(logps) / 144, abs=1e-3)
