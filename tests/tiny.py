"""Small models and data that tests make for themselves."""

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
