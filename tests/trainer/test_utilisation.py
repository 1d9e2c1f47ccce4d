"""FLOP by formula, and `mfu` where the device's peak is known."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import tiny_model
from tests.support.training import make_trainer
from trainer.monitor.utilisation import ModelFlop, peak_flops
from trainer.scoring.packing import pack

HIDDEN, INNER, LAYERS, VOCABULARY = 64, 128, 2, 97
# Queries and output, keys and values of one head of 32, three projections of the MLP, two norms; a norm at the end.
LLAMA = LAYERS * (2 * HIDDEN**2 + 2 * HIDDEN * 32 + 3 * HIDDEN * INNER + 2 * HIDDEN) + HIDDEN


def test_flop_of_a_pass_are_those_of_its_matrix_products() -> None:
    model = tiny_model("llama")
    flop = ModelFlop.of(model)
    assert (flop.body, flop.head, flop.trained) == (LLAMA, HIDDEN * VOCABULARY, 1.0)
    assert flop.forward(100, 70) == 2 * (100 * LLAMA + 70 * HIDDEN * VOCABULARY)
    assert flop.backward(100, 70) == 2 * flop.forward(100, 70)
    model.requires_grad_(False)
    frozen = ModelFlop.of(model)
    assert frozen.backward(100, 70) == frozen.forward(100, 70)


def test_an_embedding_of_its_own_is_no_matrix_product() -> None:
    flop = ModelFlop.of(tiny_model("qwen2"))
    assert flop.head == HIDDEN * VOCABULARY
    assert flop.body == tiny_model("qwen2").num_parameters() - 2 * HIDDEN * VOCABULARY


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", torch.float16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, None),
    ],
)
def test_a_peak_is_that_of_the_device_by_its_whole_name(
    name: str, dtype: torch.dtype, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), dtype) == peak
    assert peak_flops(torch.device("cpu"), dtype) is None


@pytest.mark.seconds
def test_the_log_has_mfu_where_the_peak_is_known_and_only_there(
    reference: Path, negative_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_steps": 2, "logging_steps": 2, "logging_first_step": False}
    options |= {"per_device_train_batch_size": 8}
    plain = make_trainer(reference, negative_set, tmp_path, **options)
    plain.train()
    assert "mfu" not in plain.state.log_history[0]
    monkeypatch.setattr("trainer.trainer.peak_flops", lambda *_: 1e9)
    trainer = make_trainer(reference, negative_set, tmp_path, **options)
    seen: list[Any] = []
    collate = trainer.data_collator
    trainer.data_collator = RecordingCollator(collate, seen)  # type: ignore[assignment]
    trainer.train()
    logs = trainer.state.log_history[0]
    batches = [pack(groups) for groups in seen[:2]]  # the loader is one ahead
    tokens, targets = sum(b.input_ids.numel() for b in batches), sum(len(b.target_ids) for b in batches)
    flop = 3 * ModelFlop.of(trainer.model).forward(tokens, targets)
    assert trainer.state.total_flos == flop
    expected = flop / 1e9 / tokens * float(logs["tokens_per_second"])
    assert float(logs["mfu"]) == pytest.approx(expected, rel=0.01, abs=1e-4)


class RecordingCollator:
    """The trainer's, and the sequences that it laid out."""

    def __init__(self, collate: Any, seen: list[Any]):
        self.collate, self.seen = collate, seen

    def __call__(self, groups: Any) -> Any:
        passes = self.collate(groups)
        self.seen.append([sequence for packed in passes for sequence in packed.sequences])
        return passes
