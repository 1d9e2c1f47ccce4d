"""Predicted memory and hours by model, method and devices: `python -m tests.benchmarks.sizing`. Nothing is measured.

The paper's runs (batch 64, K = 12; 2,000 steps of MLE, 1,000 of CPO) on groups of Dolly's lengths under GPT-2's
tokenizer, whose negatives are responses of other rows, cut at 256 tokens. On A100s of 80 GB, with --bf16 true
--gradient_checkpointing true and, on several, --fsdp; time as --dry_run predicts it, at 40% of the peak.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from trl import ModelConfig

from data.command.wording import size
from tests.benchmarks.extent import extent
from tests.benchmarks.memory import with_config
from tests.benchmarks.training import make_groups
from tests.support.in_order import InOrder
from trainer.arguments import PaperTrainingArguments
from trainer.config import PAPER_BATCH_SIZE
from trainer.groups.dataset import Collator, TrainingGroup
from trainer.objectives import OBJECTIVES
from trainer.policy import Policy
from trainer.scoring.continuations import Continuations
from trainer.sizing.devices import device_of
from trainer.sizing.first_steps import STEPS, FirstSteps
from trainer.sizing.predicted import Case, predict
from trainer.sizing.size_table import seconds_per_step
from trainer.sizing.stand_in import layout_of

DEVICE, ROW_TOKENS, UTILISATION = "NVIDIA A100-SXM4-80GB", 8192, 0.4
# The shapes of known models, as their config.json states them.
MODELS: dict[str, dict[str, Any]] = {
    "GPT2-XL": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "OpenLLaMA-3B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 3200, "intermediate_size": 8640,
        "num_hidden_layers": 26, "num_attention_heads": 32, "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    },
    "Llama-2-7B": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip
LORA = {"use_peft": True, "lora_target_modules": ["all-linear"]}
# Name: objective, steps, what TRL's ModelConfig is told.
METHODS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "MLE": ("mle", 2000, {}),
    "CPO, CPO-rank": ("cpo-rank", 1000, {}),  # they make the same passes
    "CPO, LoRA": ("cpo", 1000, LORA),
}
WORLDS = extent((1, 8, 16), (1, 16))


def row(model: str, policy: Policy, layout: str, method: str, world: int, groups: list[TrainingGroup]) -> str:
    name, number, load = METHODS[method]
    objective = OBJECTIVES.load(name)
    if objective.needs == "truths":
        groups = [TrainingGroup(g.id, Continuations(g.tokens.prefix, g.tokens.continuations[:1])) for g in groups]
    with tempfile.TemporaryDirectory() as folder:
        training = PaperTrainingArguments(
            output_dir=folder, use_cpu=True, report_to="none", max_steps=number, bf16=True,
            gradient_checkpointing=True, per_device_train_batch_size=PAPER_BATCH_SIZE // world,
        )  # fmt: skip
    policy = dataclasses.replace(policy, config=ModelConfig(dtype="float32", **load))
    case = Case(policy, training, objective, objective.Options(), device_of(DEVICE), world, sharded=world > 1)
    first = FirstSteps.of(InOrder(groups), training, world)
    steps = first.laid_out(Collator(layout, ROW_TOKENS, ["bn"]))
    found = predict(case, layout, steps.largest, accumulates=steps.most_passes > 1)
    fits = found.peak <= case.device.usable
    seconds = seconds_per_step(case, found, steps, UTILISATION)
    assert seconds is not None
    time = f"{seconds:.3g} | {seconds * number / 3600:.2g}" if fits else "- | does not fit"
    return f"| {model} | {method} | {world} | {size(found.peak)} | {steps.positions:,.0f} | {time} |"


def main() -> None:
    groups = make_groups(PAPER_BATCH_SIZE * extent(STEPS, 1))
    print("| model | method | A100-80GB | predicted peak each | tokens a step | s a step | hours of the run |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for model in sys.argv[1:] or extent(tuple(MODELS), ("OpenLLaMA-3B",)):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(with_config(folder, MODELS[model]))
            policy = Policy(directory, ModelConfig(dtype="float32"), from_scratch=True, dropout=False)
            layout = layout_of(policy)
            for method in METHODS:
                for world in WORLDS:
                    print(row(model, policy, layout, method, world, groups), flush=True)


if __name__ == "__main__":
    main()
