"""data/tokens.py: what ends a continuation, what is special, how a continuation reads, and ids that a model lacks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.command.errors import UserError
from data.models import load_tokenizer
from data.sources.encode import Encoded, encode_pairs
from data.tokens import (
    Declared,
    declare,
    declared,
    marks_of,
    never_drawn,
    reading_of,
    text_behind,
    through_first_end,
)
from tests.support import odd_tokenizers as odd


def ids_of(tokenizer: Any, *tokens: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(tokens))


@pytest.mark.parametrize(("kind", "end"), [("chatml", "<|im_end|>"), ("gemma", "<end_of_turn>")])
def test_what_the_template_ends_a_turn_with_is_an_end_beside_eos(
    reference: Path, tmp_path: Path, kind: str, end: str
) -> None:
    tokenizer = odd.save_model(tmp_path, getattr(odd, kind)(reference))
    assert tokenizer.all_special_ids == ids_of(tokenizer, "<|endoftext|>")
    assert marks_of(tokenizer).ends == set(ids_of(tokenizer, "<|endoftext|>", end))
    assert marks_of(tokenizer).eos == tokenizer.eos_token_id


@pytest.mark.parametrize("eos", [5, [5, 7]])
def test_generation_config_names_ends_one_or_several(reference: Path, tmp_path: Path, eos: Any) -> None:
    tokenizer = odd.save_model(tmp_path, load_tokenizer(str(reference)), generation={"eos_token_id": eos})
    assert marks_of(tokenizer).ends == {0, *([eos] if isinstance(eos, int) else eos)}


def test_without_a_generation_config_the_ends_of_the_config_count_as_they_do_for_vllm(
    reference: Path, tmp_path: Path
) -> None:
    odd.save_model(tmp_path, load_tokenizer(str(reference)))
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [0, 9]}))
    assert marks_of(load_tokenizer(str(tmp_path))).ends == {0, 9}
    config.pop("eos_token_id", None)  # of a model of texts and images
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": {"eos_token_id": [0, 7]}}))
    assert marks_of(load_tokenizer(str(tmp_path))).ends == {0, 7}


def test_an_end_that_no_model_can_produce_or_that_is_no_id(reference: Path, tmp_path: Path) -> None:
    tokenizer = odd.save_model(tmp_path, load_tokenizer(str(reference)), generation={"eos_token_id": [50256, -1]})
    assert marks_of(tokenizer).ends == {0}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match=r"generation_config.json' has the eos_token_id \['</s>'\]; it must be an id"):
        load_tokenizer(str(tmp_path))


def test_what_the_template_writes_around_turns_is_special_however_it_was_added(reference: Path) -> None:
    """By add_tokens alone: neither an opening that MN may draw nor a word, nor a tag of reasoning, is taken for one."""
    tokens = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "user", "  ", "<|unused|>"]
    template = odd.CHATML.replace("{{ m.role }}\n", "{{ m.role }}\n  <think></think>")
    tokenizer = odd.with_tokens(reference, tokens, template, special=False)
    start, end = ids_of(tokenizer, "<|im_start|>", "<|im_end|>")
    assert marks_of(tokenizer).written == marks_of(tokenizer).special == {0, start, end}
    assert start in never_drawn(tokenizer, marks_of(tokenizer))
    pairs = [("a <|im_start|>user", "b"), ("a <think>b</think>", " c"), ("user", " d")]
    found = encode_pairs(pairs, tokenizer, 64)
    assert found[0] == ("special token in prompt", "<|im_start|>")
    assert [isinstance(one, Encoded) for one in found] == [False, True, True]


def test_what_the_template_writes_around_a_system_turn_or_opens_an_answer_with_is_special_too(reference: Path) -> None:
    tokens = ["<|system|>", "<|user|>", "<|assistant|>", "<|go|>", "<|end|>"]
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><|go|>{% endif %}"
    )
    tokenizer = odd.with_tokens(reference, tokens, template, special=False)
    assert marks_of(tokenizer).special == {0, *ids_of(tokenizer, *tokens)}
    assert marks_of(tokenizer).ends == {0, *ids_of(tokenizer, "<|end|>")}


def test_tokens_of_added_tokens_decoder_alone_are_special(reference: Path) -> None:
    tokenizer = odd.chatml(reference)
    start, end = ids_of(tokenizer, "<|im_start|>", "<|im_end|>")
    assert marks_of(tokenizer).special == marks_of(tokenizer).written == {0, start, end}


def test_a_turn_end_that_was_added_as_a_plain_token_is_an_end_and_special(reference: Path) -> None:
    tokenizer = odd.chatml(reference, special=False)
    (end,) = ids_of(tokenizer, "<|im_end|>")
    assert end in marks_of(tokenizer).ends & marks_of(tokenizer).special
    assert text_behind(tokenizer, [9], [*tokenizer("so")["input_ids"], end], marks_of(tokenizer).ends) == "so"


def test_a_token_for_unknown_characters_may_stand_in_a_text_and_is_special_all_the_same() -> None:
    tokenizer = odd.sentencepiece()
    end, begin, unknown = ids_of(tokenizer, "</s>", "<s>", "<unk>")
    assert marks_of(tokenizer).written == {end, begin}
    assert marks_of(tokenizer).special == {end, begin, unknown}


def test_a_template_that_ends_no_turn_or_refuses_the_probe_adds_no_end(reference: Path) -> None:
    for template in (
        "{{ messages[-1].content }}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].content }}{{ eos_token }}",
    ):
        tokenizer = odd.with_tokens(reference, ["<|im_end|>"], template)
        assert marks_of(tokenizer).ends == {0}


def test_a_template_that_takes_no_chat_without_a_system_prompt_tells_its_end_with_one(reference: Path) -> None:
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + odd.CHATML
    tokenizer = odd.with_tokens(reference, ["<|im_start|>", "<|im_end|>"], needs_system)
    assert marks_of(tokenizer).ends == {0, *ids_of(tokenizer, "<|im_end|>")}


def test_what_stands_before_a_text_is_no_eos_that_stands_behind_it() -> None:
    begin = ids_of(odd.sentencepiece(), "<s>")
    assert list(marks_of(odd.sentencepiece()).leading) == begin
    assert list(marks_of(odd.sentencepiece(adds_eos=True)).leading) == begin


def test_ids_are_cut_through_their_first_end_or_get_an_eos(reference: Path) -> None:
    marks = marks_of(odd.chatml(reference))
    (end,) = marks.ends - {0}
    assert through_first_end([5, 6, end, 7, 0], marks) == [5, 6, end]
    assert through_first_end([5, 6], marks) == [5, 6, 0]


@pytest.mark.parametrize("kind", ["llama", "first", "always"])
def test_a_continuation_reads_as_it_does_behind_its_prompt(kind: str) -> None:
    tokenizer = odd.sentencepiece(kind)
    prompt, rest = tokenizer("the cat")["input_ids"], ids_of(tokenizer, "▁there")
    assert tokenizer.decode(rest) == "there"
    assert text_behind(tokenizer, prompt, rest, ()) == " there"
    assert text_behind(tokenizer, prompt, ids_of(tokenizer, "ther"), ()) == "ther"
    assert text_behind(tokenizer, [], rest, ()) == "there"
    assert reading_of(tokenizer) == "decoded behind the prompt"


def test_of_byte_level_tokens_a_text_is_what_it_is_alone(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    bytes_of = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert len(bytes_of) == 2
    for before, ids in (([9, 9], tokenizer(" so it is")["input_ids"]), ([9, bytes_of[0]], [bytes_of[1], 9])):
        assert text_behind(tokenizer, before, ids, ()) == tokenizer.decode(ids)
    assert reading_of(tokenizer) == ""


# Tokenizer against model


def test_tokens_without_a_row_in_the_embedding_are_refused_with_both_sizes(reference: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<new>", "<newer>"])
    with pytest.raises(UserError) as refused:
        odd.save_model(tmp_path, tokenizer, rows=rows)
    said = f"'{tmp_path}' has {rows + 2} tokens, the model's embedding {rows} rows"
    assert said in str(refused.value)
    assert f"none for '<newer>', id {rows + 1}. Resize the embedding" in str(refused.value)


@pytest.mark.parametrize("kind", ["chatml", "gemma"])
def test_chat_tokens_without_a_row_are_refused_though_no_text_may_hold_them(
    reference: Path, tmp_path: Path, kind: str
) -> None:
    tokenizer = getattr(odd, kind)(reference)
    with pytest.raises(UserError, match="Resize the embedding"):
        odd.save_model(tmp_path, tokenizer, rows=len(tokenizer) - 2)


def test_a_pad_token_without_a_row_is_refused(reference: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(UserError, match=r"there is none for '\[PAD\]'"):
        odd.save_model(tmp_path, tokenizer, rows=rows)


def test_padded_vocabularies_and_special_tokens_that_reach_no_model_are_taken(reference: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    rows = len(tokenizer)
    odd.save_model(tmp_path / "padded", tokenizer, rows=rows + 63)
    image = odd.with_tokens(reference, ["<image>"], odd.CHATML.replace("<|im_end|>", "{{ eos_token }}"))
    odd.save_model(tmp_path / "image", image, rows=rows)  # as Gemma's text models are


def test_a_saved_copy_of_a_tokenizer_is_the_same_one(reference: Path, tmp_path: Path) -> None:
    from data.models import tokenizer_hash

    for name, made in (("a", odd.chatml(reference)), ("b", odd.sentencepiece()), ("c", odd.sentencepiece("first"))):
        first = odd.save_model(tmp_path / name, made)
        shutil.copy(tmp_path / name / "config.json", (tmp_path / f"{name}2").mkdir() or tmp_path / f"{name}2")
        first.save_pretrained(tmp_path / f"{name}2")
        assert tokenizer_hash(load_tokenizer(str(tmp_path / f"{name}2"))) == tokenizer_hash(first)


def test_what_a_models_files_say_is_one_thing_that_comes_with_its_tokenizer(reference: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, alone = load_tokenizer(str(reference)), AutoTokenizer.from_pretrained(reference)
    assert declared(tokenizer).rows == json.loads((reference / "config.json").read_text())["vocab_size"]
    assert declared(alone) == Declared()
    declare(alone, Declared((7,)))
    assert marks_of(alone).ends == {7, alone.eos_token_id}
