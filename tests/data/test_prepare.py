"""data/sources/encode.py and data/sources/prepare.py: from examples to token ids, or to rejects with their reasons."""

import json
from pathlib import Path
from typing import Any

import pytest

from data import blank
from data.models import load_tokenizer
from data.schema import example_id
from data.sources.examples import Example
from data.sources.prepare import describe_rejects, prepare_groups, require_groups
from tests.support.read_examples import as_example, load_examples
from tests.support.written import refusal

TASK = "prompt-completion"

# Writes a turn as <role>content<|endoftext|>; refuses a system prompt.
TEMPLATE = """{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('No system prompts here') }}{% endif -%}
<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(scope="module")
def chat_tokenizer(reference: Path) -> Any:
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def example(prompt: Any, response: Any, task: str = TASK) -> Example:
    return as_example(prompt, response, task, "test")


def chat(*contents: str) -> Example:
    """A conversation of user and assistant in turn."""
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return example(messages[:-1], messages[-1:], "conversational")


def test_a_text_that_is_far_too_long_is_not_tokenised(
    tokenizer: Any, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    """A text of a gigabyte would take minutes."""
    long, longest = "a" * 8_001, 0
    of_texts = type(tokenizer).__call__

    def measured(self: Any, texts: Any, **options: Any) -> Any:
        nonlocal longest
        longest = max(longest, *map(len, [texts] if isinstance(texts, str) else texts))
        return of_texts(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", measured)
    for one, task, used, reason in (
        (example(long, "b"), TASK, tokenizer, "prompt too long"),
        (example("b", long), TASK, tokenizer, "prompt and response too long"),
        (chat(long, "b"), "conversational", chat_tokenizer, "prompt too long"),
    ):
        groups, [reject], _ = prepare_groups([one, example("b", "c")], task, used, 8)
        assert (reject.reason, len(groups)) == (reason, 1)
        assert reject.detail.endswith("characters, context 8 tokens")
    [group], rejects, truncated = prepare_groups([example(long, "", "continuation")], "continuation", tokenizer, 8)
    assert (len(group.prompt_ids) + len(group.response_ids), rejects, truncated) == (8, [], 1)
    assert longest <= 8_000


# Pairs of texts


def test_prompt_and_response_are_tokenised_apart_and_the_response_ends_with_eos(tokenizer: Any):
    word = max((t for t in tokenizer.get_vocab() if t.isalpha() and t.isascii()), key=len)
    prompt, response = word[:2], word[2:]
    assert len(tokenizer(prompt + response)["input_ids"]) == 1
    [group], rejects, _ = prepare_groups([example(prompt, response)], TASK, tokenizer, 128)
    assert group.prompt_ids == tokenizer(prompt)["input_ids"]
    assert group.response_ids == [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    assert (group.id, group.prompt, group.response) == (example_id(prompt, response), prompt, response)
    assert (group.split, group.negatives, group.reference_logp, rejects) == ("test", [], None, [])


@pytest.mark.parametrize(
    ("prompt", "response", "reason", "detail"),
    [
        (None, "a", "prompt is not text", "it is NoneType"),
        ("a", 3, "response is not text", "it is int"),
        (" \n", "a", "empty prompt", ""),
        ("a", "", "empty response", ""),
        ("a", "\ud800", "response is not valid Unicode", "surrogates not allowed"),
        ("\x00" * 8, "a", "prompt too long", "8 tokens, context 8"),
        ("\x00" * 4, "\x00" * 4, "prompt and response too long", "4 + 5 tokens, context 8"),
    ],
)
def test_an_unusable_row_is_rejected_with_reason_and_detail(
    tokenizer: Any, prompt: Any, response: Any, reason: str, detail: str
):
    groups, [reject], _ = prepare_groups([example(prompt, response)], TASK, tokenizer, 8)
    assert groups == []
    assert (reject.reason, reject.detail, reject.prompt) == (reason, detail, str(prompt))
    assert reject.id == example_id(prompt, response)


def test_a_row_that_just_fits_is_kept(tokenizer: Any):
    [group], rejects, _ = prepare_groups([example("\x00" * 4, "\x00" * 3)], TASK, tokenizer, 8)
    assert (len(group.prompt_ids), len(group.response_ids), rejects) == (4, 4, [])


class Words:
    """A tokenizer that puts a BOS before a prompt, and gives <unk> for a word and nothing for punctuation."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 2, 0
    all_special_ids = (0, 1, 2, 3)
    vocabulary = ("<unk>", "<s>", "</s>", "<tool>", "a", "b")

    def __init__(self, adds_bos: bool = True):
        self.adds_bos = adds_bos

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        bos = [self.bos_token_id] if self.adds_bos and add_special_tokens else []
        return {"input_ids": [bos + [self._id(word) for word in text.split() if word != "."] for text in texts]}

    def _id(self, word: str) -> int:
        return self.vocabulary.index(word) if word in self.vocabulary else self.unk_token_id

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.vocabulary[i] for i in ids]


@pytest.mark.parametrize(("prompt", "response", "reason"), [(".", "b", "empty prompt"), ("a", ".", "empty response")])
def test_a_text_without_tokens_is_rejected(prompt: str, response: str, reason: str):
    _, [reject], _ = prepare_groups([example(prompt, response)], TASK, Words(adds_bos=False), 8)
    assert (reject.reason, reject.detail) == (reason, "the tokenizer gives no token for it")


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        (f"a {blank.EOS} b", "c", "special token in prompt"),
        (blank.EOS, "c", "special token in prompt"),
        ("a", f"b{blank.EOS}c", "special token in response"),
        ("a", f"b{blank.EOS}", "special token in response"),
    ],
)
def test_a_special_token_written_out_in_a_text_is_rejected(tokenizer: Any, prompt: str, response: str, reason: str):
    assert tokenizer.is_fast
    groups, [reject], _ = prepare_groups([example(prompt, response)], TASK, tokenizer, 128)
    assert (groups, reject.reason, reject.detail) == ([], reason, blank.EOS)


def test_special_tokens_that_the_tokenizer_adds_and_unknown_words_do_not_reject_a_row():
    rows = [("a new", "new b"), ("<s> a <tool>", "b"), ("a", "</s> b")]
    [group], rejects, _ = prepare_groups([example(*row) for row in rows], TASK, Words(), 8)
    assert (group.prompt_ids, group.response_ids) == ([1, 4, 0], [0, 5, 2])
    assert [(r.reason, r.detail) for r in rejects] == [
        ("special token in prompt", "<s> <tool>"),
        ("special token in response", "</s>"),
    ]


def test_rows_read_are_groups_plus_rejects_in_order(tokenizer: Any):
    rows = [("a", "b"), ("a", ""), ("a", "c"), ("x" * 999, "c"), (None, "d")]
    groups, rejects, truncated = prepare_groups([example(*row) for row in rows], TASK, tokenizer, 128)
    assert [(g.prompt, g.response) for g in groups] == [("a", "b"), ("a", "c")]
    assert [r.reason for r in rejects] == ["empty response", "prompt too long", "prompt is not text"]
    assert len(rejects[1].prompt) == 200
    assert truncated == 0


def test_no_usable_row_is_an_error_that_says_why(tokenizer: Any):
    groups, rejects, _ = prepare_groups([example("a", ""), example("b", ""), example(None, "c")], TASK, tokenizer, 8)
    message = refusal(lambda: require_groups(groups, rejects, "'file'"))
    said = "3 rejected (2 empty response; 1 prompt is not text: it is NoneType)"
    assert message == f"no usable row in 'file': {said}. Fix the data or choose other rows."
    assert describe_rejects([]) == "0 rejected"
    _, others, _ = prepare_groups([example(None, "c"), example(5, "c")], TASK, tokenizer, 8)
    assert describe_rejects(others) == "2 rejected (2 prompt is not text, such as: it is int)"
    good, _, _ = prepare_groups([example("a", "b")], TASK, tokenizer, 8)
    require_groups(good, [], "'file'")


class StumblingStub:
    """A tokenizer that breaks down on some texts, as an Exception or as Rust code panics."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        for word, error in (("trip", ValueError("over this\nor that")), ("panic", BaseException("overflow"))):
            if any(word in text for text in texts):
                raise error
        return self.tokenizer(texts, **options)


def test_a_text_that_breaks_the_tokenizer_costs_its_row_only(tokenizer: Any):
    rows = [("a", "b"), ("a", "trip"), ("panic", "b"), ("c", "d")]
    examples = [example(*row) for row in rows]
    groups, rejects, _ = prepare_groups(examples, TASK, StumblingStub(tokenizer), 128)
    assert groups == prepare_groups([examples[0], examples[3]], TASK, tokenizer, 128).groups
    assert [(r.reason, r.detail) for r in rejects] == [
        ("tokenizer failed", "over this"),
        ("tokenizer failed", "overflow"),
    ]


# Messages


def test_the_template_up_to_the_assistants_turn_is_the_prompt_and_its_eos_ends_the_response(chat_tokenizer: Any):
    eos = chat_tokenizer.eos_token_id
    [group], rejects, _ = prepare_groups([chat("Hi", "Ho", "So?", " Yes. ")], "conversational", chat_tokenizer, 128)
    prompt = f"<user>Hi{blank.EOS}\n<assistant>Ho{blank.EOS}\n<user>So?{blank.EOS}\n<assistant>"
    assert (group.prompt, group.response, group.split) == (prompt, "Yes.", "test")
    assert group.prompt_ids == chat_tokenizer(prompt)["input_ids"]
    assert group.prompt_ids.count(eos) == 3
    assert group.response_ids == [*chat_tokenizer("Yes.")["input_ids"], eos]
    assert rejects == []


def test_a_template_without_eos_gets_one(reference: Path):
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    [group], _, _ = prepare_groups([chat("Hi", "Ho")], "conversational", tokenizer, 128)
    assert group.prompt == "<user>Hi\n<assistant>"
    assert group.response_ids == [*tokenizer("Ho\n")["input_ids"], tokenizer.eos_token_id]


def test_a_template_that_rewrites_the_answer_or_the_prompt(reference: Path):
    tokenizer = load_tokenizer(str(reference))
    tokenizer.chat_template = TEMPLATE.replace("| trim", "| upper")
    [group], _, _ = prepare_groups([chat("Hi", "Ho")], "conversational", tokenizer, 128)
    assert group.response == "HO"  # what the tokens say
    tokenizer.chat_template = TEMPLATE.replace("<{{", "{{ messages | length }}<{{")
    _, [reject], _ = prepare_groups([chat("Hi", "Ho")], "conversational", tokenizer, 128)
    assert reject.reason == "chat template rewrites the prompt"


@pytest.mark.parametrize(
    ("contents", "reason", "detail"),
    [
        ((f"a{blank.EOS}", "b"), "special token in prompt", blank.EOS),
        (("a", f"b{blank.EOS}c"), "special token in response", blank.EOS),
        (("\x00" * 32, "b"), "prompt too long", "47 tokens, context 32"),
    ],
)
def test_the_contents_of_messages_are_checked_as_texts_are(
    chat_tokenizer: Any, contents: tuple[str, ...], reason: str, detail: str
):
    _, [reject], _ = prepare_groups([chat(*contents)], "conversational", chat_tokenizer, 32)
    assert (reject.reason, reject.detail) == (reason, detail)


def test_a_role_that_the_template_refuses_costs_its_row_only(chat_tokenizer: Any):
    system = example(
        [{"role": "system", "content": "Be kind."}], [{"role": "assistant", "content": "b"}], "conversational"
    )
    groups, [reject], _ = prepare_groups([chat("a", "b"), system], "conversational", chat_tokenizer, 128)
    assert len(groups) == 1
    assert (reject.reason, reject.detail) == ("chat template failed", "No system prompts here")


def test_texts_and_messages_may_stand_in_one_file(chat_tokenizer: Any):
    examples = [chat("a", "b"), example("c", "d"), chat("e", "f")]
    groups, rejects, _ = prepare_groups(examples, TASK, chat_tokenizer, 128)
    assert [(g.prompt[:7], g.response) for g in groups] == [("<user>a", "b"), ("c", "d"), ("<user>e", "f")]
    assert groups[0].messages == [{"role": "user", "content": "a"}]
    assert groups[1].messages is None
    assert rejects == []


def test_without_a_chat_template_messages_are_one_error_and_among_texts_rejects(tokenizer: Any):
    message = refusal(lambda: prepare_groups([chat("a", "b"), chat("c", "d")], "conversational", tokenizer, 128))
    assert "the model's tokenizer has no chat template" in message
    groups, [reject], _ = prepare_groups([chat("a", "b"), example("c", "d")], TASK, tokenizer, 128)
    assert (len(groups), reject.reason) == (1, "no chat template")


# Continuations


def continued(text: Any, tokenizer: Any, max_length: int = 128) -> Any:
    return prepare_groups([example(text, "", "continuation")], "continuation", tokenizer, max_length)


@pytest.mark.parametrize(("length", "prefix"), [(2, 1), (6, 1), (13, 1), (14, 2), (20, 3), (100, 15)])
def test_a_text_is_tokenised_once_and_cut_at_15_percent_rounded_down(tokenizer: Any, length: int, prefix: int):
    text = "\x01" * length  # one token each
    [group], rejects, truncated = continued(text, tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == length
    assert (group.prompt_ids, group.response_ids) == (ids[:prefix], [*ids[prefix:], tokenizer.eos_token_id])
    assert (group.prompt, group.response) == (text[:prefix], text[prefix:])
    assert (group.id, group.split, rejects, truncated) == (example_id(text, ""), "test", [], 0)


def test_a_long_text_is_cut_to_the_context_and_counted(tokenizer: Any):
    [group], rejects, truncated = continued("\x01" * 500, tokenizer, 41)
    assert (len(group.prompt_ids), len(group.response_ids)) == (6, 35)
    assert group.response_ids[-1] == tokenizer.eos_token_id
    assert (group.response, rejects, truncated) == ("\x01" * 34, [], 1)
    assert continued("\x01" * 40, tokenizer, 41).truncated == 0
    assert continued("\x01" * 41, tokenizer, 41).truncated == 1


class DecodingWords(Words):
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(self.vocabulary[i] for i in ids)


def test_the_bos_that_the_tokenizer_adds_comes_before_the_prefix():
    [group], _, _ = continued("a b a b", DecodingWords(), 8)
    assert (group.prompt_ids, group.response_ids) == ([1, 4], [5, 4, 5, 2])
    assert (group.prompt, group.response) == ("a", " b a b")  # as it reads behind the prompt
    [group], _, truncated = continued("a b a b", DecodingWords(), 5)  # BOS and EOS need room too
    assert (group.prompt_ids, group.response_ids, truncated) == ([1, 4], [5, 4, 2], 1)
    [group], _, _ = continued("a b a b", DecodingWords(adds_bos=False), 8)
    assert group.prompt_ids == [4]


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        (7, "text is not text", "it is int"),
        (" \n", "empty text", ""),
        ("\x01", "too few tokens to continue", "1, but a prefix and a continuation need 2"),
        (f"\x01\x01{blank.EOS}", "special token in text", blank.EOS),
        ("\x01 ", "empty response", "this part of the text is blank"),
        ("\n\x01\x01", "empty prompt", "this part of the text is blank"),
    ],
)
def test_a_text_that_cannot_be_cut_is_rejected(tokenizer: Any, text: Any, reason: str, detail: str):
    groups, [reject], _ = continued(text, tokenizer)
    assert (groups, reject.reason, reject.detail) == ([], reason, detail)
    assert reject.prompt == str(text)


# What a person asked


@pytest.mark.parametrize(
    ("task", "row", "query"),
    [
        ("dolly", {"instruction": "Translate.\n\nInput:\n\nHallo", "response": "Hi"}, "Translate.\n\nInput:\n\nHallo"),
        ("dolly", {"instruction": "Name it.", "context": "A cat.", "response": "Cat"}, "Name it.\n\nA cat."),
        ("prompt-completion", {"prompt": "Who?", "completion": " Ada."}, "Who?"),
        ("continuation", {"text": "one two three four five six seven"}, "one t"),
    ],
)
def test_a_group_says_what_a_person_asked(tokenizer: Any, tmp_path: Path, task: str, row: dict, query: str):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [group], _, _ = prepare_groups(load_examples(str(tmp_path / "rows.jsonl"), task, "all"), task, tokenizer, 512)
    assert group.query == query


def test_the_query_changes_neither_ids_nor_halves(tmp_path: Path):
    """Ids and halves are of prompt and response alone: sets made before there was a query hold the same groups."""
    rows = [{"instruction": f"Question {n}?", "context": "", "response": f"Answer {n}."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_examples(str(tmp_path / "rows.jsonl"), "dolly", "all")
    assert [e.id for e in examples] == [example_id(e.prompt, e.response) for e in examples]
    found = [(e.id[:8], e.split) for e in examples]
    assert found == [("301d424a", "train"), ("6d7f81c1", "test"), ("5a32f3e0", "train"), ("5583386a", "test")]
