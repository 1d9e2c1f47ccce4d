"""`python -m data.blank`: one clear line for wrong input with nothing written, and what it says of rows."""

import json
import shutil
from pathlib import Path

import pytest

import data.blank
from tests.support.command_lines import refused
from tests.support.commands import fork_command


def test_blank_refuses_an_impossible_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(data.blank.main, ["--hidden_size", "100", "--num_heads", "3", "--out", str(tmp_path / "b")], capsys)
    assert "100 is not divisible" in line
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--vocab_size", "256"],
            "vocab_size must be above 256, one entry a byte and the end, and at most 16777216; got 256",
        ),
        (["--vocab_size", "99999999999999"], "and at most 16777216; got 99999999999999"),
        (["--num_heads", "0"], "num_heads must be at least 1, got 0"),
        (["--num_layers", "0"], "num_layers must be at least 1, got 0"),
        (["--out", "s3://bucket/blank"], "--out 's3://bucket/blank' is a URL. Give a local directory"),
    ],
)
def test_blank_refuses_what_it_cannot_write(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(data.blank.main, ["--out", str(tmp_path / "b"), *words], capsys)
    assert not (tmp_path / "b").exists()


def test_blank_refuses_a_directory_that_holds_a_model(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(reference, model)
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    assert "already holds files" in refused(data.blank.main, ["--out", str(model)], capsys)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_an_empty_directory_is_written_into_and_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o2770)
    (tmp_path / ".tmp-of-a-kill").touch()
    monkeypatch.chdir(tmp_path)
    assert data.blank.main(["--out", ".", "--vocab_size", "300"]) == 0
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert tmp_path.stat().st_mode & 0o7777 == 0o2770


def test_rows_that_are_not_usable_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f'{{"prompt": "question {n}", "completion": "answer {n}"}}' for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, rows[0], "no JSON", "[" * 100_000]))
    words = ["--dataset", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "b"), "--vocab_size", "300"]
    assert data.blank.main(words) == 0
    said = [record.message for record in caplog.records if "not used" in record.message]
    assert len(said) == 1
    assert said[0].startswith(f"rows of '{tmp_path}/rows.jsonl' that are not used: 3 (")
    assert "2 not JSON" in said[0]
    assert "1 duplicate" in said[0]


def test_rows_that_are_not_used_are_said_under_the_commands_name(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    said = [{"prompt": f"Who is {i}?", "completion": "Ida." if i % 2 else ""} for i in range(40)]
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in said))
    words = "--dataset", str(rows), "--vocab_size", "300", "--out", str(tmp_path / "blank")
    done = fork_command("data.blank", *words)
    assert done.returncode == 0
    assert f"\nWARNING data.blank: rows of '{rows}' that are not used: " in f"\n{done.stderr}"
