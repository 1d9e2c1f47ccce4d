"""data/sources/encode.py and tokenise.py: a text that is tokenised in parts is the text tokenised whole."""

from pathlib import Path
from typing import Any

import pytest

from data.models import load_tokenizer
from data.sources.encode import Encoded, encode_continuations, encode_pairs, lost_field
from data.sources.tokenise import tokenise_behind, tokenise_continuations
from data.tokens import marks_of
from tests.support import odd_tokenizers as odd

KINDS = ["llama", "first", "always"]


def turns(*contents: str, roles: tuple[str, ...] = ("user", "assistant")) -> tuple[list, list]:
    messages = [{"role": roles[i % len(roles)], "content": text} for i, text in enumerate(contents)]
    return messages[:-1], messages[-1:]


def encoded(tokenizer: Any, *pairs: Any, max_length: int = 512) -> list[Encoded]:
    found = encode_pairs(pairs, tokenizer, max_length)
    assert all(isinstance(one, Encoded) for one in found), found
    return found  # type: ignore[return-value]


# Texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "response", "tokens"),
    [
        ("the cat", " there", ["▁there"]),
        ("the cat", " there to go", ["▁there", "▁to", "▁go"]),
        ("the\n", "the cat", ["the", "▁cat"]),
        ("go.", "there", ["ther", "e"]),
    ],
)
def test_a_response_is_tokenised_as_what_goes_on(kind: str, prompt: str, response: str, tokens: list[str]) -> None:
    tokenizer = odd.sentencepiece(kind)
    [found] = encoded(tokenizer, (prompt, response))
    assert odd.spelled(tokenizer, found.response_ids) == [*tokens, "</s>"]
    assert [*found.prompt_ids, *found.response_ids[:-1]] == tokenizer(prompt + response)["input_ids"]
    assert (found.prompt, found.response) == (prompt, response)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_the_same_behind_every_prompt(kind: str) -> None:
    tokenizer = odd.sentencepiece(kind)
    first, second = encoded(tokenizer, ("the cat", " there"), ("go\n", " there"))
    assert first.response_ids == second.response_ids


def test_byte_level_bpe_takes_a_response_as_it_is_alone(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    texts = [" there", "there", "\n\nthere", "  so", "é", "12"]
    assert tokenise_continuations(tokenizer, texts) == tokenizer(texts)["input_ids"]


def test_byte_level_bpe_with_a_space_before_each_text_leaves_it_out_of_a_continuation(reference: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = load_tokenizer(str(reference))
    texts = ["there", " there", "\nthere"]
    alone = tokenizer(texts)["input_ids"]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer(texts)["input_ids"] != alone
    assert tokenise_continuations(tokenizer, texts) == alone


def test_a_prompt_does_not_end_with_an_eos_that_the_tokenizer_adds() -> None:
    tokenizer = odd.sentencepiece(adds_eos=True)
    assert tokenizer("the cat")["input_ids"][-1] == tokenizer.eos_token_id
    [found] = encoded(tokenizer, ("the cat", " there"))
    assert odd.spelled(tokenizer, found.prompt_ids) == ["<s>", "▁the", "▁cat"]
    assert odd.spelled(tokenizer, found.response_ids) == ["▁there", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_continued_text_are_the_text(kind: str) -> None:
    tokenizer = odd.sentencepiece(kind)
    text = "the cat there to go the cat"
    [found] = encode_continuations([(text, "")], tokenizer, 64)
    assert isinstance(found, Encoded)
    assert (found.prompt, found.response) == ("the", " cat there to go the cat")
    assert [*found.prompt_ids, *found.response_ids[:-1]] == tokenizer(text)["input_ids"]


# Chats


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_is_tokenised_whole_and_cut_where_the_answer_begins(kind: str) -> None:
    tokenizer = odd.sentencepiece(kind, template=odd.INSTRUCT)
    [found] = encoded(tokenizer, turns("the cat", "there to go"))
    whole = tokenizer("<s>[i] the cat [o]\nthere to go</s>", add_special_tokens=False)["input_ids"]
    assert [*found.prompt_ids, *found.response_ids] == whole
    assert odd.spelled(tokenizer, found.prompt_ids)[-1] == "<0x0A>"
    assert odd.spelled(tokenizer, found.response_ids) == ["ther", "e", "▁to", "▁go", "</s>"]


@pytest.mark.parametrize(
    ("kind", "opening", "end"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("gemma", "<|endoftext|><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
    ],
)
def test_a_truth_ends_with_the_first_end_that_the_template_writes(
    reference: Path, kind: str, opening: str, end: str
) -> None:
    tokenizer = getattr(odd, kind)(reference)
    [found] = encoded(tokenizer, turns("Hi", "Yes, it is."))
    assert (found.prompt, found.response) == (opening, "Yes, it is.")
    assert found.prompt_ids == tokenizer(opening)["input_ids"]
    expected = [*tokenizer("Yes, it is.")["input_ids"], *tokenizer.convert_tokens_to_ids([end])]
    assert found.response_ids == expected  # no newline and no EOS behind it


@pytest.mark.parametrize(
    ("before", "after", "response"),
    [
        ("", "", "Yes."),
        (" ", "", " Yes."),  # as Llama 2's and Mistral's
        ("", " ", "Yes. "),
        ("<think>\n\n</think>\n\n", "", "<think>\n\n</think>\n\nYes."),  # as Qwen3's last turn
    ],
)
def test_a_truth_reads_as_candidates_of_its_ids_do(reference: Path, before: str, after: str, response: str) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}"
    template += f"{before}{{{{ m.content }}}}{after}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = template
    [found] = encoded(tokenizer, turns("Is it?", "Yes."))
    assert found.response == response == tokenizer.decode(found.response_ids[:-1])
    assert tokenizer.decode([*found.prompt_ids, *found.response_ids[:-1]]) == found.prompt + found.response


def test_a_text_with_a_turns_end_in_it_is_refused(reference: Path) -> None:
    tokenizer = odd.chatml(reference, special=False)
    pairs = [("a", "b<|im_end|>c"), turns("a", "b<|im_end|>c"), turns("a<|im_end|>", "b")]
    reasons = [found[0] for found in encode_pairs(pairs, tokenizer, 512) if isinstance(found, tuple)]
    assert reasons == ["special token in response", "special token in response", "special token in prompt"]


def test_where_a_token_straddles_the_cut_the_prompt_keeps_its_own(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    word = max((t for t in tokenizer.get_vocab() if t.isalpha() and t.isascii()), key=len)
    assert len(tokenizer(word)["input_ids"]) == 1
    [(prompt, rest)] = tokenise_behind(tokenizer, [word[:2]], [word[2:]])
    assert (prompt, rest) == (tokenizer(word[:2])["input_ids"], tokenizer(word[2:])["input_ids"])
    pieces = odd.sentencepiece()
    [(prompt, rest)] = tokenise_behind(pieces, ["the th"], ["ere"])
    assert odd.spelled(pieces, prompt) == ["▁the", "▁th"]
    assert odd.spelled(pieces, rest) == ["er", "e"]


# Fields and turns that count


DROPS_TOOLS = "{% for m in messages if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("content", ["42", "user"])
def test_a_turn_that_the_template_writes_nothing_of_is_refused(reference: Path, content: str) -> None:
    tokenizer = load_tokenizer(str(reference))
    pair = turns("What is it?", content, "It is 42.", roles=("user", "tool", "assistant"))
    tokenizer.chat_template = DROPS_TOOLS
    expected = ("chat template leaves out a message", "message 2, of role 'tool'")
    assert encode_pairs([pair], tokenizer, 512) == [expected]
    tokenizer.chat_template = DROPS_TOOLS.replace(" if m.role != 'tool'", "")
    [found] = encoded(tokenizer, pair)
    assert f"[tool]{content}<|endoftext|>" in found.prompt


@pytest.mark.parametrize("user", ["go", "go be brief", "system be brief"])
@pytest.mark.parametrize(
    "strict", ["", "{% if messages[-1].content[-1:] == '5' %}{{ raise_exception('no') }}{% endif %}"]
)
def test_a_turn_that_is_left_out_is_refused_whatever_others_say(reference: Path, user: str, strict: str) -> None:
    """The text of the turn may stand in another one."""
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = DROPS_TOOLS.replace("tool", "system") + strict
    pair = turns("be brief", user, "be brief", roles=("system", "user", "assistant"))
    expected = ("chat template leaves out a message", "message 1, of role 'system'")
    assert encode_pairs([pair], tokenizer, 512) == [expected]
    tokenizer.chat_template = DROPS_TOOLS
    assert encoded(tokenizer, pair)[0].prompt.startswith("[system]be brief<|endoftext|>[user]")


SPLIT = "{{ m.content.split('</think>')[-1] }}"
THINKS = "{% if 'think' in m.content %}<think>\n{{ m.content.split('</think>')[0][7:] }}\n</think>\n{% endif %}"


@pytest.mark.parametrize(
    ("contents", "template", "cut"),
    [
        (["a", "<think>why</think>yes"], SPLIT, "message 2, 'assistant'"),
        (["a", "<think>why</think>b", "c", "d"], SPLIT, "message 2, 'assistant'"),
        (["a", "something"], "{{ m.content[-4:] }}", "message 2, 'assistant'"),
        (["a", "yes"], SPLIT, None),
        (["a", " b\n c "], "{{ m.content | trim }}", None),
        (["a", 'say "b"\n'], "{{ m.content | tojson }}", None),
        # Written otherwise than it was said, and whole, as Qwen3's template does of the last turn.
        (["a", "<think>why</think>yes"], THINKS + SPLIT, None),
    ],
)
def test_a_turn_whose_beginning_the_template_cuts_is_refused(
    reference: Path, contents: list[str], template: str, cut: str | None
) -> None:
    """Judges and reward models would see what the reference did not, and a truth would lose its reasoning."""
    tokenizer = odd.chatml(reference)
    tokenizer.chat_template = odd.CHATML.replace("{{ m.content }}", template)
    assert tokenizer.chat_template != odd.CHATML
    (found,) = encode_pairs([turns(*contents)], tokenizer, 512)
    if cut:
        assert found == ("chat template cuts a message", f"the beginning of {cut}")
    else:
        assert isinstance(found, Encoded)


def test_a_chat_is_refused_where_the_end_of_its_turn_cannot_be_known(reference: Path) -> None:
    """The template refuses the probe: nothing would stop at <|im_end|>, which stands behind each answer."""
    tokenizer = odd.chatml(reference)
    pair = turns("a", "b", "a question", "an answer")
    encoded(tokenizer, pair)
    refuses = "messages | length < 3 or messages[1].content == 'a'"
    tokenizer.chat_template = "{{ raise_exception('no') if " + refuses + " }}" + odd.CHATML
    assert marks_of(tokenizer).ends == {0}
    assert encode_pairs([pair], tokenizer, 512) == [("chat template's end unknown", "<|im_end|> behind the response")]


def test_what_stands_in_front_of_an_answer_ends_no_turn(reference: Path) -> None:
    """A template that refuses the probe, and writes a token of its own where an answer begins."""
    tokenizer = odd.chatml(reference)
    refuses = "{{ raise_exception('no') if messages | length < 3 or messages[1].content == 'a' }}"
    opens = "{% for m in messages %}{{ '<|im_start|>' if m.role == 'assistant' }}{{ m.content }}{% endfor %}"
    tokenizer.chat_template = refuses + opens
    (found,) = encoded(tokenizer, turns("a", "b", "a question", "an answer"))
    assert found.response_ids[-1] == tokenizer.eos_token_id


def test_the_name_of_a_field_is_cut_in_a_reason_alone(reference: Path) -> None:
    tokenizer, name = odd.chatml(reference), "n" * 100
    assert lost_field("a", "b", [{name: True}], tokenizer) == (
        "n" * 40 + " cannot be kept",
        "beside a text, of which prompt and response are kept",
    )
    tokenizer.chat_template += "{{ messages[0]['" + name + "'] }}"
    prompt, response = turns("a", "b")
    found = lost_field(prompt, response, [{name: "seen"}, {}], tokenizer)
    assert found is not None
    assert found[0] == "n" * 40 + " cannot be kept"
