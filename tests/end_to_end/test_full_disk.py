"""A disk that is full: one line, and nothing half-written stays."""

from pathlib import Path

import pytest

from data.models import check_model
from tests.support.commands import fork_command
from tests.support.ensembles import arguments
from tests.support.training import cli, metrics

pytestmark = pytest.mark.seconds

WEIGHTS = 2000  # bytes: less than any file of weights, more than what lies beside them


def small(most: int, module: str, *words: str) -> list[str]:
    """The lines of stderr that are errors, of a command that must fail."""
    done = fork_command("tests.support.small_files", str(most), module, *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_a_checkpoint_that_cannot_be_written_is_removed_and_the_run_goes_on_later(
    what: str, reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = cli(
        reference, negative_set, out, "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1",
        "--report_to", "none",
    )  # fmt: skip
    size = (reference / "model.safetensors").stat().st_size
    most = {"weights": size // 2, "optimizer": size + size // 2}[what]  # Adam's moments take twice the weights
    (line,) = small(most, "trainer.run", *words)
    assert line.startswith(f"error: cannot save '{out}/checkpoint-1': ")
    assert line.endswith("the last whole checkpoint, if there is one, with --resume_from_checkpoint true.")
    assert not (out / "checkpoint-1").exists()
    assert fork_command("trainer.run", *words, "--resume_from_checkpoint", "true").returncode == 0
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2]


def test_a_model_that_cannot_be_written_leaves_no_half_of_its_weights(
    reference: Path, negative_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = cli(reference, negative_set, out, "--max_steps", "1", "--save_strategy", "no", "--report_to", "none")
    (line,) = small((reference / "model.safetensors").stat().st_size // 2, "trainer.run", *words)
    assert line.startswith(f"error: cannot save '{out}': File too large.")
    assert not list(out.glob("*.safetensors"))


def test_a_blank_model_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (line,) = small(WEIGHTS, "data.blank", "--out", str(tmp_path / "new" / "blank"))
    assert line.startswith("error: cannot write '")
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
    assert fork_command("data.blank", "--out", str(tmp_path / "new" / "blank")).returncode == 0
    check_model(str(tmp_path / "new" / "blank"), needs_weights=False)


def test_an_export_and_an_ensemble_leave_nothing_half_written(
    reference: Path, negative_set: Path, mle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    (line,) = small(
        WEIGHTS, "negatives_gen.verbs.export", str(negative_set), "--format", "trl-sft", "--out", f"{out}/a.jsonl"
    )
    assert line.startswith(f"error: cannot write '{out}/a.jsonl': File too large.")
    assert not list(out.iterdir())
    words = arguments(mle, reference, tmp_path / "ensemble", 0.5)
    (line,) = small(WEIGHTS, "trainer.ensemble.__main__", *words)
    assert "File too large" in line
    assert not list(tmp_path.rglob("*.safetensors"))
