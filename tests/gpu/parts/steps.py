"""Speed, model FLOP utilisation and peak memory of training steps in bfloat16, by the trainers themselves.

A step of CPO is 16 groups with K = 12, one of TRL's DPO the same groups as pairs with their stored reference
log-probabilities, one of MLE as many ground truths as take about as many tokens. Padded K-way is what an ordinary
trainer would do: each group as padded rows, and the reference model in the loop.
"""

import itertools
import statistics
import tempfile
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from tests.benchmarks.extent import extent
from tests.gpu.parts.checks import at_most
from tests.gpu.parts.inputs import BETA, ROW_TOKENS, STEP, make_groups, make_model
from tests.gpu.parts.predicted import predicted_peak
from tests.gpu.parts.timing import finished, median_seconds
from tests.support.in_order import InOrder
from trainer.groups.dataset import Collator, TrainingGroup
from trainer.monitor.utilisation import ModelFlop, peak_flops
from trainer.objectives import OBJECTIVES
from trainer.objectives.losses import cpo_loss
from trainer.scoring.packing import TokenBatch, pad
from trainer.trainer import ContrastiveTrainer

WARM_UP, MEASURED = extent((3, 5), (1, 2))
TRUTHS = extent(96, 4)  # of a step of MLE
PAIRS = extent(8, 2)  # of a pass of TRL's, which pads; STEP * (K - 1) is a multiple of it
DTYPE = torch.bfloat16
MEMORY = 0.15  # how far off the prediction the peak may be


def cpo(device: str, size: str) -> dict[str, Any]:
    """A step of our trainer on packed groups."""
    return _ours(device, size, "cpo", make_groups(size, STEP))


def mle(device: str, size: str) -> dict[str, Any]:
    """A step of our trainer on packed ground truths."""
    return _ours(device, size, "mle", make_groups(size, TRUTHS, negatives=0))


def dpo(device: str, size: str) -> dict[str, Any]:
    """A step of TRL's DPOTrainer, as our objective `dpo` runs it."""
    import pyarrow as pa
    from datasets import Dataset

    from trainer.objectives.pairs import PAIRS as COLUMNS
    from trainer.objectives.pairs import _pairs_of, make_dpo_trainer

    groups, model = make_groups(size, STEP), make_model(size, device, DTYPE)
    flop = ModelFlop.of(model)
    rows = [(len(g.tokens.prefix), len(c)) for g in groups for pair in _of_pairs(g) for c in pair]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Dataset(pa.Table.from_pylist([p for g in groups for p in _pairs_of(g)], schema=COLUMNS))  # type: ignore[arg-type]
        arguments = _arguments(folder, device, PAIRS, len(pairs) // PAIRS)
        trainer = make_dpo_trainer(pairs, model, None, _tokenizer(folder), arguments, BETA)
        trainer._checked_start = True  # its random weights are no reference
        seconds, memory = _train(trainer, device)
    needed = sum(map(sum, rows)), sum(length for _, length in rows)
    return _step(device, size, "dpo", seconds, memory, groups=STEP, tokens=needed[0], flop=_flop(flop, *needed))


def padded(device: str, size: str) -> dict[str, Any]:
    """A step of CPO with a group's candidates as padded rows, whole logits, and the reference's pass beside it."""
    groups = make_groups(size, STEP)
    policy, reference = make_model(size, device, DTYPE), make_model(size, device, DTYPE).eval()
    batches = [pad([group.tokens]).to(device) for group in groups]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=True)

    def logps(model: Any, batch: TokenBatch) -> torch.Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.flatten(0, 1)
        values = logits[batch.target_index].float().log_softmax(-1).gather(-1, batch.target_ids[:, None])[:, 0]
        sums = torch.zeros(batch.mask.numel(), device=device).index_add(0, batch.slot, values)
        return sums.view(batch.mask.shape)

    def step() -> None:
        for batch in batches:
            with torch.no_grad():
                before = logps(reference, batch)
            (cpo_loss(logps(policy, batch), before, beta=BETA) / STEP).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = median_seconds(step, device, after_warm_up=lambda: _forget_peak(device))
    tokens = sum(len(g.tokens.prefix) + len(c) for g in groups for c in g.tokens.continuations)
    return _step(device, size, "padded", seconds, _peak(device), groups=STEP, tokens=tokens)


def _ours(device: str, size: str, name: str, groups: list[TrainingGroup]) -> dict[str, Any]:
    model, objective = make_model(size, device, DTYPE), OBJECTIVES.load(name)
    options = objective.Options(**({"beta": BETA} if name == "cpo" else {}))
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(folder, device, len(groups), 1)
        trainer = ContrastiveTrainer(
            model=model, args=arguments, train_dataset=InOrder(groups), objective=objective, options=options,
            row_tokens=ROW_TOKENS,
        )  # fmt: skip
        trainer._checked_start = True  # its random weights are no reference
        seconds, memory = _train(trainer, device)
        layout = trainer.prepared.layout
        passes = Collator(layout, ROW_TOKENS, ["an"])(groups)
        predicted = predicted_peak(size, DTYPE, arguments, objective, options, layout, passes)
    tokens = sum(g.tokens.packed_length for g in groups)
    flop = _flop(ModelFlop.of(model), tokens, sum(len(c) for g in groups for c in g.tokens.continuations))
    return _step(device, size, name, seconds, memory, len(groups), tokens, flop, predicted)


class Clock(TrainerCallback):
    """When each step ended; peak memory is that of what follows the warm-up."""

    def __init__(self, device: str):
        self.device, self.moments = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.moments.append(finished(self.device))
        if len(self.moments) == WARM_UP:
            _forget_peak(self.device)


def _train(trainer: Any, device: str) -> tuple[float, int | None]:
    """Seconds of a step, the median of those behind the warm-up, from one step's end to the next; bytes at the peak."""
    clock = Clock(device)
    trainer.add_callback(clock)
    trainer.train()
    measured = clock.moments[WARM_UP - 1 :]
    return statistics.median(b - a for a, b in itertools.pairwise(measured)), _peak(device)


def _arguments(folder: str, device: str, batch: int, accumulation: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder, max_steps=WARM_UP + MEASURED, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation, learning_rate=1e-5, lr_scheduler_type="constant",
        logging_steps=1000, save_strategy="no", report_to="none", disable_tqdm=True, bf16=False,
        gradient_checkpointing=False, remove_unused_columns=False, use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
    )  # fmt: skip


def _step(
    device: str,
    size: str,
    method: str,
    seconds: float,
    memory: int | None,
    groups: int,
    tokens: int,
    flop: float | None = None,
    predicted: tuple[int | None, str] = (None, ""),
) -> dict[str, Any]:
    """What a part says of a step; `tokens` without padding, `flop` of what these need, logits once."""
    peak = peak_flops(torch.device(device), DTYPE)
    step = {
        "size": size, "method": method, "seconds": seconds, "groups": groups, "tokens": tokens,
        "groups_per_second": groups / seconds, "tokens_per_second": tokens / seconds,
        "tflop_per_second": flop and flop / seconds / 1e12, "mfu": flop and peak and flop / seconds / peak,
        "peak_bytes": memory, "predicted_bytes": predicted[0], "prediction": predicted[1],
    }  # fmt: skip
    return {"checks": memory_checks(memory, predicted), "steps": [step]}


def memory_checks(memory: int | None, predicted: tuple[int | None, str]) -> list[dict[str, Any]]:
    """Whether a measured peak is near its prediction, and whether there is one; nothing of padded and TRL's steps.

    Args:
        memory: bytes; None on a CPU.
        predicted: bytes, or None and why not.
    """
    found = [at_most(f"no prediction of memory: {predicted[1]}", 1, 0)] if predicted[1] else []
    if memory and predicted[0]:
        found.append(at_most("peak memory off its prediction, of it", abs(memory / predicted[0] - 1), MEMORY))
    return found


def _flop(model: ModelFlop, positions: int, targets: int) -> float:
    return model.forward(positions, targets) + model.backward(positions, targets)


def _of_pairs(group: TrainingGroup) -> list[tuple[Any, Any]]:
    truth, *negatives = group.tokens.continuations
    return [(truth, negative) for negative in negatives]


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    """Bytes of tensors at the peak since it was forgotten; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def _tokenizer(folder: str) -> Any:
    """A tokenizer for TRL, which takes the padding token from it."""
    from transformers import AutoTokenizer

    from data.blank import BlankConfig, write_blank_model

    write_blank_model(BlankConfig(out=f"{folder}/tokenizer"))
    return AutoTokenizer.from_pretrained(f"{folder}/tokenizer")
