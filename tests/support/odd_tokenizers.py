"""Small tokenizers of the kinds that real models have, each with a tiny model beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from data.models import load_tokenizer
from tests.support.tiny import tiny_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Words between the turns and the letters of answers, without a special token between prompt and answer.
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[i] {{ m.content }} [o]\n"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
WORDS = ("▁the", "▁cat", "▁things", "▁there", "▁to", "▁go", "▁a", "▁ma", "ther", "er")


def save_model(directory: Path, tokenizer: Any, *, rows: int | None = None, generation: dict | None = None) -> Any:
    """Save a tokenizer with a tiny Llama beside it and return the tokenizer as our commands load it.

    Args:
        rows: of the embedding; as many as the tokenizer has tokens if not given.
        generation: of generation_config.json.
    """
    tokenizer.save_pretrained(directory)
    tiny_model("llama", vocab_size=rows or len(tokenizer)).save_pretrained(directory)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return load_tokenizer(str(directory))


def with_tokens(reference: Path, tokens: Sequence[str], template: str, *, special: bool = True) -> Any:
    """The byte-level tokenizer of a base model to which chat tokens were added: its EOS stays what it was.

    The tokens stand in `added_tokens_decoder` alone: transformers counts them to none of its special tokens.
    """
    tokenizer = load_tokenizer(str(reference))
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    tokenizer.chat_template = template
    return tokenizer


def chatml(reference: Path, *, special: bool = True) -> Any:
    """ChatML on a base tokenizer: a turn ends with <|im_end|>, EOS is <|endoftext|>."""
    return with_tokens(reference, ["<|im_start|>", "<|im_end|>"], CHATML, special=special)


def gemma(reference: Path) -> Any:
    """Turns as Gemma's, which end with <end_of_turn>."""
    return with_tokens(reference, ["<start_of_turn>", "<end_of_turn>"], GEMMA)


def sentencepiece(kind: str = "llama", *, template: str | None = None, adds_eos: bool = False) -> Any:
    """A tokenizer over letters and a few words that marks the beginning of each word, as Llama's does.

    Args:
        kind: "llama": the mark of a text's first word comes from a normaliser; else `prepend_scheme` of Metaspace.
        adds_eos: whether it puts an EOS behind each text, as it puts a BOS before it.
    """
    merges = list(dict.fromkeys((word[:i], word[i]) for word in WORDS for i in range(1, len(word))))
    pieces = ["</s>", "<s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz.[]", "<0x0A>", *(a + b for a, b in merges)]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    if kind == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        marks = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(marks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        marks = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind)]
        tokenizer.decoder = decoders.Sequence(marks)
    numbers = [("<s>", 1), ("</s>", 0)]
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if adds_eos else "<s> $A", special_tokens=numbers
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.chat_template = template
    return found


def spelled(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The tokens of ids, as they stand in the vocabulary."""
    return tokenizer.convert_ids_to_tokens(list(ids))
