"""Fifty steps of each objective against values written down when the objectives had been checked by hand.

They fail when the maths drifts: an objective, the packing, the order of groups, the optimiser's settings. Where a
change is meant to move them, `python -m tests.trainer.test_golden` prints the new ones; say in the changelog why
they moved.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from data.models import load_tokenizer
from data.shards import NegativeSet
from tests.support.tiny import make_negative_set, save_tiny_model
from trainer.arguments import PaperTrainingArguments
from trainer.groups.dataset import ContrastiveGroups
from trainer.groups.store import GroupStore
from trainer.objectives import OBJECTIVES
from trainer.trainer import ContrastiveTrainer

pytestmark = pytest.mark.seconds

STEPS = (1, 10, 20, 30, 40, 50)
GOLDEN = {
    "mle": [6.47560, 6.21153, 5.97825, 5.78007, 5.54775, 5.33773],
    "pss": [6.48050, 6.25278, 6.04814, 5.87156, 5.67003, 5.47501],
    "cpo": [1.38629, 0.79644, 0.35210, 0.15274, 0.06185, 0.03826],
    "cpo-rank": [3.17805, 2.62111, 1.96680, 1.68010, 1.29159, 1.10036],
    "dpo": [0.69315, 0.38786, 0.17590, 0.08201, 0.04203, 0.02306],
    "cpo + 0.5 mle": [4.62267, 3.96525, 3.44311, 3.15326, 2.95902, 2.82005],
    "nca": [1.38629, 1.00701, 0.67577, 0.47723, 0.30902, 0.26966],
    "cpo + length": [1.38629, 0.90372, 0.50107, 0.27156, 0.12633, 0.07195],
}
# Options of the objectives that are not their defaults.
GIVEN: dict[str, dict[str, Any]] = {
    "pss": {"pss_passes": 2},
    "cpo": {"beta": 0.5},
    "cpo-rank": {"beta": 0.5},
    "cpo + 0.5 mle": {"beta": 0.5, "sft_weight": 0.5},
    "nca": {"beta": 0.5},
    "cpo + length": {"loss_normalize": "length"},
}
TRAJECTORIES = ("mle", "pss", "cpo", "cpo-rank", "cpo + 0.5 mle", "dpo", "nca", "cpo + length")


def trajectory(objective: str, reference: Path, negatives: NegativeSet, out: Path) -> list[float]:
    """Losses of the steps in STEPS."""
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer

    from trainer.objectives.pairs import make_dpo_trainer, preference_pairs

    name = objective.partition(" + ")[0]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    arguments = PaperTrainingArguments(
        output_dir=str(out), use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, max_steps=50,
        logging_steps=1, per_device_train_batch_size=8, learning_rate=2e-4, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer: Trainer
    if name == "dpo":
        pairs = preference_pairs(ContrastiveGroups.of([negatives], "train"), name)
        trainer = make_dpo_trainer(pairs, model, None, load_tokenizer(str(reference)), arguments, 0.5)
    else:
        chosen = OBJECTIVES.load(name)
        options = chosen.Options(**GIVEN.get(objective, {}))
        dataset = (
            ContrastiveGroups(GroupStore([negatives], "train"))
            if chosen.needs == "truths"
            else ContrastiveGroups.of([negatives], "train")
        )
        trainer = ContrastiveTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            objective=chosen,
            options=options,
            row_tokens=256,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = {logs["step"]: float(logs["loss"]) for logs in trainer.state.log_history if "loss" in logs}
    return [losses[step] for step in STEPS]


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NegativeSet]:
    """A model and a set that no other test moves."""
    return make_fixed(tmp_path_factory.mktemp("golden"))


def make_fixed(folder: Path) -> tuple[Path, NegativeSet]:
    reference = save_tiny_model(folder / "model", seed=3)
    make_negative_set(folder / "set", reference, num_groups=48, num_negatives=3)
    return reference, NegativeSet(str(folder / "set"))


@pytest.mark.parametrize("objective", TRAJECTORIES)
def test_losses_of_fifty_steps_are_those_recorded(
    objective: str, fixed: tuple[Path, NegativeSet], tmp_path: Path
) -> None:
    assert trajectory(objective, *fixed, tmp_path) == pytest.approx(GOLDEN[objective], rel=2e-3, abs=2e-4)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        fixed = make_fixed(Path(name))
        for objective in TRAJECTORIES:
            values = ", ".join(f"{loss:.5f}" for loss in trajectory(objective, *fixed, Path(name) / "out"))
            print(f'    "{objective}": [{values}],')


if __name__ == "__main__":
    sys.exit(main())
