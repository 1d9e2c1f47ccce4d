"""Where answers end and how they read is part of what they are kept under; and how a second model ends them."""

from pathlib import Path
from typing import Any

import pytest

from data.models import load_tokenizer
from data.schema import Group
from data.tokens import reading_of
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import load_checkpoints
from evaluation.metrics.likelihood import _read_as_text
from negatives_gen.models.engine import Sample
from tests.support import odd_tokenizers as odd
from tests.support.read_examples import as_example


def identity_of(model: Path, store: Path) -> dict[str, str]:
    examples = [as_example("the cat", " there", "prompt-completion")]
    [checkpoint] = load_checkpoints({"m": str(model)}, examples, "prompt-completion", "rows", Store(str(store)))
    return checkpoint.identity


def test_an_identity_says_what_hashes_do_not(reference: Path, tmp_path: Path) -> None:
    chat, pieces = (
        odd.save_model(tmp_path / "c", odd.chatml(reference)),
        odd.save_model(tmp_path / "p", odd.sentencepiece()),
    )
    for name, tokenizer in (("c", chat), ("p", pieces)):
        for _ in range(2):  # made, then kept
            assert identity_of(tmp_path / name, tmp_path / "store")["reading"] == reading_of(tokenizer) != ""
    assert "reading" not in identity_of(reference, tmp_path / "store")  # what is kept of such models stays


@pytest.mark.parametrize(("kind", "end"), [("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>")])
def test_a_second_model_ends_a_chats_answer_as_its_template_ends_a_turn(reference: Path, kind: str, end: str) -> None:
    tokenizer: Any = getattr(odd, kind)(reference)
    messages = [{"role": "user", "content": "Where?"}]
    chat = Group("c", "as another template wrote it", "r", [9], [8, 0], messages=messages)
    samples = [Sample([7, 0], "On Aska.", reason, -1.0, None) for reason in ("stop", "length")]
    [(prompt, stopped), (_, cut)] = _read_as_text([chat, chat], samples, tokenizer)
    template = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer(template)["input_ids"]
    assert stopped == [*cut, *tokenizer.convert_tokens_to_ids([end])]


def test_a_second_model_ends_a_texts_answer_with_eos(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    [(_, answer)] = _read_as_text(
        [Group("t", "a", "r", [9], [8, 0])], [Sample([7], " b", "stop", -1.0, None)], tokenizer
    )
    assert answer == [*tokenizer(" b")["input_ids"], tokenizer.eos_token_id]
