"""A training step of ours against TRL's pairs, padded K-way with a reference model, and a plain next-token step.

`python -m tests.benchmarks.training [gpt2] [llama]`. Groups with K = 12 and lengths drawn from Dolly's training half
under GPT-2's tokenizer; random weights, float32, AdamW; a step is 8 groups. Each contestant is a process of its own,
so that its peak memory is its own, and takes the same groups. TRL gets them as 11 pairs each, its reference
log-probabilities computed beforehand (its own time for that is reported apart), with both of transformers' samplers
that know lengths and several batch sizes; padded K-way several numbers of groups per pass.
"""

import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.dolly import DOLLY, SHARED
from tests.benchmarks.extent import extent
from tests.support.in_order import InOrder
from trainer.groups.dataset import PackedGroups, TrainingGroup
from trainer.scoring.continuations import Continuations
from trainer.scoring.packing import pad

K, STEP, STEPS, LONGEST, ROW_TOKENS = extent((12, 8, 3, 256, 1024), (5, 2, 2, 32, 128))
BETA = 5.0
MODELS: dict[str, dict[str, Any]] = {
    # 17.9 M and 17.7 M parameters.
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 4, "n_positions": 1024},
    "llama": {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_model(kind: str, vocab_size: int = 50257) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {**MODELS[kind], "vocab_size": vocab_size}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def make_groups(count: int) -> list[TrainingGroup]:
    """Prompts and responses of Dolly; the negatives are responses of other rows."""
    from data.sources.prepare import prepare_groups
    from tests.support.read_examples import load_examples

    tokenizer = _gpt2_tokenizer()
    examples = load_examples(DOLLY, "dolly", "train", 2 * count)
    groups = prepare_groups(examples, "dolly", tokenizer, 1024 - LONGEST).groups[:count]
    draw = random.Random(0)
    responses = [g.response_ids[:LONGEST] for g in groups]
    return [
        TrainingGroup(
            g.id,
            Continuations(g.prompt_ids, [g.response_ids[:LONGEST], *draw.sample(responses, K - 1)]),
            [0.0] * K,
            [1.0, *(draw.random() for _ in range(K - 1))],
            ["an"] * (K - 1),
        )
        for g in groups
    ]


def _gpt2_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(SHARED / "tokenizers/gpt2"))


def step_times(trainer: Any) -> list[float]:
    """Seconds of each optimiser step of a Trainer, from batch to batch."""
    from transformers import TrainerCallback

    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return [b - a for a, b in itertools.pairwise(moments)]


def ours(kind: str, folder: str, vocab_size: int = 50257) -> dict[str, Any]:
    from trainer.arguments import PaperTrainingArguments
    from trainer.trainer import ContrastiveTrainer

    model, groups = make_model(kind, vocab_size), make_groups(STEP * STEPS)
    trainer = ContrastiveTrainer(
        model=model, args=PaperTrainingArguments(**arguments(folder), per_device_train_batch_size=STEP),
        train_dataset=InOrder(groups), beta=BETA, row_tokens=ROW_TOKENS,
    )  # fmt: skip
    trainer._checked_start = True  # its random weights are no reference
    tokens = sum(g.tokens.packed_length for g in groups)
    return {"seconds": step_times(trainer), "tokens": tokens, "layout": trainer.prepared.layout}


def arguments(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "use_cpu": True, "save_strategy": "no", "report_to": "none", "max_steps": STEPS,
        "logging_steps": 1000, "disable_tqdm": True, "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip


def trl(kind: str, folder: str, sampler: str, batch: int) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from trainer.objectives.pairs import PairTrainer, _pairs_of

    model, groups = make_model(kind), make_groups(STEP * STEPS)
    pairs = Dataset.from_list([pair for group in groups for pair in _pairs_of(group)])
    config = DPOConfig(
        **arguments(folder), beta=BETA, max_length=None, precompute_ref_log_probs=True,
        per_device_train_batch_size=batch, gradient_accumulation_steps=STEP * (K - 1) // batch,
        train_sampling_strategy=sampler, remove_unused_columns=False,
    )  # fmt: skip
    trainer = PairTrainer(model=model, args=config, train_dataset=pairs, processing_class=_gpt2_tokenizer())
    seconds = step_times(trainer)
    part = pairs.select(range(STEP * (K - 1))).remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    started = time.perf_counter()
    DPOTrainer._precompute_ref_logps(trainer, part, "part", 4)
    return {"seconds": seconds, "reference": time.perf_counter() - started}


def padded(kind: str, _: str, per_pass: int) -> dict[str, Any]:
    """A step as an ordinary K-way trainer makes it: padded rows, TRL's log-probabilities, the reference in the loop."""
    from trl.trainer.utils import selective_log_softmax

    from trainer.objectives.losses import cpo_loss

    policy, reference, groups = make_model(kind), make_model(kind).eval(), make_groups(STEP * STEPS)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)

    def logps(model: Any, batch: PackedGroups) -> torch.Tensor:
        t = batch.tokens
        logits = model(input_ids=t.input_ids, attention_mask=t.attention_mask).logits[:, :-1]
        every = selective_log_softmax(logits, t.input_ids[:, 1:])
        row, column = t.target_index // t.input_ids.shape[1], t.target_index % t.input_ids.shape[1]
        values = every[row, column]
        return torch.zeros(t.mask.numel()).index_add(0, t.slot, values).view(t.mask.shape)

    seconds = []
    for start in range(0, len(groups), STEP):
        began = time.perf_counter()
        for first in range(start, start + STEP, per_pass):
            part = groups[first : first + per_pass]
            batch = _padded_groups(part)
            with torch.no_grad():
                before = logps(reference, batch)
            loss = cpo_loss(logps(policy, batch), before, beta=BETA) * len(part) / STEP
            loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds}


def _padded_groups(groups: list[TrainingGroup]) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(tokens=pad([g.tokens for g in groups]))


def plain(kind: str, _: str) -> dict[str, Any]:
    """Next-token prediction on full rows of packed text, as many tokens a step as ours."""
    model, groups = make_model(kind), make_groups(STEP * STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    seconds, total = [], 0
    for start in range(0, len(groups), STEP):
        tokens = sum(g.tokens.packed_length for g in groups[start : start + STEP])
        rows = tokens // ROW_TOKENS
        began = time.perf_counter()
        for _row in range(rows):
            ids = torch.randint(50257, (1, ROW_TOKENS), generator=generator)
            (model(input_ids=ids, labels=ids).loss / rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
        total += rows * ROW_TOKENS
    return {"seconds": seconds, "tokens": total}


CONTESTANTS = {"ours": ours, "trl": trl, "padded": padded, "plain": plain}


def run(kind: str, name: str, *more: Any) -> dict[str, Any]:
    """One contestant in a process of its own."""
    words = [sys.executable, "-m", "tests.benchmarks.training", "--run", kind, name, *map(str, more)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-300:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    if not Path(DOLLY).is_file():
        raise SystemExit(f"error: this benchmark needs {DOLLY}")
    if sys.argv[1:2] == ["--run"]:
        kind, name, *more = sys.argv[2:]
        with tempfile.TemporaryDirectory() as folder:
            values = [int(word) if word.isdigit() else word for word in more]
            found = CONTESTANTS[name](kind, folder, *values)  # type: ignore[operator]  # of several signatures
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    for kind in sys.argv[1:] or MODELS:
        report(kind)


def report(kind: str) -> None:
    parameters = sum(p.numel() for p in make_model(kind).parameters()) / 1e6
    print(f"{kind}, {parameters:.1f} M parameters, K = {K}, {STEP} groups a step, {STEPS} steps", flush=True)
    mine, text = run(kind, "ours"), run(kind, "plain")
    row(f"ours, {mine['layout']}", mine, "")
    each, other = (1e6 * sum(found["seconds"]) / found["tokens"] for found in (mine, text))
    row("plain next-token step", text, f"ours {each:.0f}, plain {other:.0f} us per token: {each / other:.2f} x")
    for name, more in [
        *(("padded", (size,)) for size in (1, 2)),
        *(("trl", ("batch_rebalance", size)) for size in (2, 4)),
        *(("trl", ("group_by_length", size)) for size in (4, 8)),
    ]:
        found, title = run(kind, name, *more), " ".join(map(str, (name, *more)))
        if "failed" in found:
            print(f"| {title} | failed: {found['failed'].splitlines()[-1][:100]} |", flush=True)
            continue
        faster = sum(found["seconds"]) / sum(mine["seconds"])
        note = f"ours {faster:.2f} x as fast, {mine['memory'] / found['memory']:.2f} of the memory"
        if "reference" in found:
            note += f"; its reference pass {found['reference']:.1f} s for a step's pairs"
        row(title, found, note)
    wide = run(kind, "ours", 2 * 50257)
    embedding = 50257 * make_model(kind).get_input_embeddings().weight.shape[1] * 4 / 2**20
    note = f"grew by {(wide['memory'] - mine['memory']) / embedding:.1f} x the {embedding:.0f} MiB of the embedding"
    row("ours, twice the vocabulary", wide, note)


def row(name: str, found: dict[str, Any], note: str) -> None:
    speed = STEP * STEPS / sum(found["seconds"])
    print(f"| {name} | {speed:.2f} groups/s | {found['memory']:.0f} MiB | {note} |", flush=True)


if __name__ == "__main__":
    main()
