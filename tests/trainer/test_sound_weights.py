"""What is saved holds finite weights only, after whichever step; a set whose numbers are not finite is not read."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from data.command.errors import UserError
from data.schema import Group
from data.shards import NegativeSet
from tests.support.damage import change_groups
from tests.support.training import cli
from trainer.groups.dataset import ContrastiveGroups
from trainer.run import main


class SpoilFault(TrainerCallback):
    """A stub: the optimiser step of this number makes a weight nan or infinite."""

    at, value = 2, math.nan

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.at:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad)[0, 0] = self.value


@pytest.mark.seconds
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize(
    ("options", "at"),
    [
        (["--save_strategy", "no"], 2),
        (["--save_steps", "1"], 1),
        (["--save_strategy", "no", "--objective", "dpo", "--use", "an=1"], 2),
        (["--save_strategy", "no", "--use_peft", "true", "--lora_target_modules", "q_proj"], 2),
    ],
    ids=["last step", "checkpoint", "pairs", "adapter"],
)
def test_weights_that_are_not_finite_are_never_saved(
    options: list[str],
    at: int,
    value: float,
    reference: Path,
    negative_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SpoilFault, "at", at)
    monkeypatch.setattr(SpoilFault, "value", value)
    monkeypatch.setattr("trainer.monitor.watch.Curves", SpoilFault)
    assert main(cli(reference, negative_set, tmp_path / "out", "--max_steps", "2", *options)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: after step {at} 1 of the weights that are trained are not finite, ")
    assert "nothing was saved" in line
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def no_similarity(groups: list[Group]) -> None:
    groups[3].negatives[1].similarity["embedding"] = math.nan


def endless_similarity(groups: list[Group]) -> None:
    groups[3].negatives[2].similarity["embedding"] = math.inf


def no_logp(groups: list[Group]) -> None:
    groups[3].negatives[0].reference_logp = math.nan


def no_truth(groups: list[Group]) -> None:
    groups[3].reference_logp = None


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (no_similarity, "similarity 'embedding' of a negative of group {id} is nan"),
        (endless_similarity, "similarity 'embedding' of a negative of group {id} is inf"),
        (no_logp, "reference_logp of a negative of group {id} is nan"),
        (no_truth, "1 of reference_logp are null"),
    ],
)
def test_a_set_with_a_number_that_is_not_finite_is_refused_when_it_is_read(
    edit: Callable[[list[Group]], Any], said: str, negative_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(negative_set, tmp_path / "set"))
    groups = change_groups(copy, edit)
    negatives = NegativeSet(str(copy))
    negatives.compute_with(None)
    dataset = ContrastiveGroups.of([negatives], "train")
    with pytest.raises(UserError) as caught:
        dataset[0]
    where = f"shard-00000.parquet of negative set '{copy}' cannot be used"
    assert f"{where}: {said.format(id=groups[3].id)}" in str(caught.value)
    assert dataset[len(groups)].reference_logps  # another shard
