"""What a save that the system refuses leaves: no half of a file of weights, and every file that it did not touch."""

import errno
import os
from pathlib import Path

import pytest

from data.command.errors import UserError
from trainer.monitor.safety import _written_whole

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save(place: Path, *names: str, text: str = "half of it", error: Exception | None = None) -> None:
    """A save that writes these files, and then fails with the error."""
    with _written_whole(place):
        place.mkdir(exist_ok=True)
        for name in names:
            (place / name).write_text(text)
        if error is not None:
            raise error


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_only_weights_that_this_save_wrote_are_removed(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", "model_backup.safetensors", "config.json", text="whole")
    with pytest.raises(UserError, match=f"^cannot save '{tmp_path}': No space left on device"):
        save(tmp_path, "config.json", "notes.txt", error=FULL)
    assert names(tmp_path) == ["config.json", "model.safetensors", "model_backup.safetensors", "notes.txt"]
    with pytest.raises(UserError, match="cannot save"):
        save(tmp_path, "model.safetensors", "adapter_model.safetensors", error=FULL)
    assert names(tmp_path) == ["config.json", "model_backup.safetensors", "notes.txt"]


def test_a_new_checkpoint_is_removed_and_another_error_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint-1"
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2")
    with pytest.raises(UserError, match="cannot save"):
        save(place, "model.safetensors", "optimizer.pt", error=torchs)
    assert not place.exists()
    with pytest.raises(KeyError):
        save(place, "model.safetensors", error=KeyError("ours"))
    assert names(place) == ["model.safetensors"]
