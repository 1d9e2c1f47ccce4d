"""All that is known of architectures: how configs name what they say and models their tensors, and what a config says
against a layout. What transformers names alike for all of them (`num_hidden_layers`) is no matter of this file.

Read without torch, so before work. What no config says is found out by trying, see `trainer.scoring.support`.
"""

import re
from collections.abc import Mapping
from typing import Any

# Names of one thing, in the order in which they are believed.
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
WIDTH = ("hidden_size", "n_embd")
LAYERS = ("num_hidden_layers", "n_layer")
# The embedding of a language model's tokens.
EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|backbone\.embeddings)\.weight$"
)
# How transformers ends the names of classes that continue texts.
CONTINUES_TEXTS = ("ForCausalLM", "LMHeadModel")
# Tensors that transformers once saved, makes itself today and never reads: the frequencies of RoPE, and causal masks,
# which unlike a bias have four dimensions.
FREQUENCIES = re.compile(r"(?:^|\.)rotary_emb\.inv_freq$")
MASKS = re.compile(r"(?:^|\.)(?:attn|attention)\.(?:masked_)?bias$")
# The head of a language model, which may be its embedding a second time.
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
# Frequencies of these come from the longest position in a forward pass.
POSITION_BOUND_ROPES = ("longrope", "dynamic")


def of_text(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json; where it is of more than text, with what it says of its language model on top."""
    text_config = config.get("text_config")
    return {**config, **text_config} if isinstance(text_config, dict) else dict(config)


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model with an encoder beside its decoder."""
    return bool(config.get("is_encoder_decoder"))


def classes(config: Mapping[str, Any]) -> list[str]:
    """The names of a model's classes in transformers, as its config.json says."""
    names = config.get("architectures")
    return [str(name) for name in (names if isinstance(names, list) else [names] if names else [])]


def continues_texts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a causal language model."""
    return any(name.endswith(CONTINUES_TEXTS) for name in classes(config))


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model takes at most; None where its config.json does not say (state space, relative positions)."""
    for value in (config.get(name) for name in CONTEXT):
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < float("inf"):
            return int(value)
    return None


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, padded beyond the tokenizer or not; None where a config.json does not say."""
    size = config.get("vocab_size")
    return size if type(size) is int and size > 0 else None


def sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """model_type, hidden_size and layers of a config.json; None where it does not say."""
    return {
        "model_type": config.get("model_type"),
        "hidden_size": next((config[name] for name in WIDTH if name in config), None),
        "layers": next((config[name] for name in LAYERS if name in config), None),
    }


def attention_heads(config: Any) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, size of each.

    Args:
        config: transformers' configuration object, of a language model.
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def obstacle_to_packing(config: Any) -> str | None:
    """Why a model cannot take the packed layout, where only sequences longer than a probe's would show it.

    Args:
        config: transformers' configuration object, of a language model.
    """
    kind = config.model_type
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or []
    if window and ("sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)):
        return f"{kind} attends through a sliding window of {window} tokens"
    if "local" in (getattr(config, "attention_layers", None) or []):  # GPT-Neo's name for it
        return f"{kind} attends through a sliding window of {config.window_size} tokens"
    if "chunked_attention" in layers:
        return f"{kind} attends within chunks of {config.attention_chunk_size} tokens"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for settings in (rope, *(value for value in rope.values() if isinstance(value, dict))):  # may be per layer type
        scaling = settings.get("rope_type", settings.get("type"))
        if scaling in POSITION_BOUND_ROPES:
            return (
                f"the '{scaling}' RoPE of {kind} takes its frequencies from the longest position in a forward pass (in "
                f"either layout, a sequence beyond the original context changes the others in its pass)"
            )
    return None
