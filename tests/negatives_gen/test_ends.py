"""TN, MN and UN, verify and extend where a turn's end is not the tokenizer's EOS: all end with the same token."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.chat.client import Answer
from data.command.errors import UserError
from data.schema import Group, groups_to_table
from data.sources.prepare import prepare_groups
from data.tokens import describe_ends, described_ends, marks_of
from negatives_gen.models.engine import Request
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import Tools
from negatives_gen.verbs import checks
from negatives_gen.verbs.extend import _refuse_other_config, _refuse_other_ends
from tests.support import odd_tokenizers as odd
from tests.support.read_examples import as_example


class EveryTokenStub:
    """A predictor that draws each id in turn that it may, so that what it may not is seen."""

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary
        self.never: list[int] = []

    def draw(self, groups: Any, uniforms: Any, *, never: Any, **_: Any) -> list[np.ndarray]:
        self.never = list(never)
        allowed = np.array([i for i in range(self.vocabulary) if i not in set(never)])
        return [allowed[np.arange(u.size).reshape(u.shape) % len(allowed)] for u in uniforms]


def chats(tokenizer: Any) -> list[Group]:
    said = [("Where?", "It lies on Aska, by the sea."), ("Who?", "Ada founded it in May.")]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    examples = [as_example(turn[:1], turn[1:], "conversational") for turn in turns]
    return prepare_groups(examples, "conversational", tokenizer, 512).groups


@pytest.fixture(params=["chatml", "gemma"])
def tokenizer(request: pytest.FixtureRequest, reference: Path) -> Any:
    return getattr(odd, request.param)(reference)


def end_of(tokenizer: Any) -> int:
    (end,) = marks_of(tokenizer).ends - {tokenizer.eos_token_id}
    return end


def test_tn_and_mn_end_with_the_truths_own_end_and_hold_no_other(tokenizer: Any) -> None:
    groups, end = chats(tokenizer), end_of(tokenizer)
    stub = EveryTokenStub(len(tokenizer))
    tools = Tools(0, 512, tokenizer, predictor=stub)
    assert STRATEGIES.load("tn").add(groups, groups, {"count": 3}, tools) == {}
    assert STRATEGIES.load("mn").add(groups, groups, {"count": 100, "mn_share": 0.5}, tools) == {}
    assert set(stub.never) == {0, *tokenizer.added_tokens_decoder}
    for group in groups:
        assert group.response_ids[-1] == end
        for candidate in group.negatives:
            assert candidate.ids[-1] == end
            assert not set(candidate.ids[:-1]) & {0, *tokenizer.added_tokens_decoder}
            assert candidate.text == tokenizer.decode(candidate.ids[:-1])


@pytest.mark.parametrize("rows", [63, 0])
def test_mn_draws_no_row_that_no_token_has(reference: Path, tmp_path: Path, rows: int) -> None:
    """Padded rows, and a special token without a row, which has no logit to be silenced."""
    from data.models import load_tokenizer
    from trainer.scoring.scorer import Scorer

    made = load_tokenizer(str(reference))
    vocabulary = len(made)
    if not rows:
        made = odd.with_tokens(reference, ["<image>"], "{{ messages[0].content }}")
    tokenizer = odd.save_model(tmp_path, made, rows=vocabulary + rows)
    group = Group("g", "a", " lies on Aska", *_ids(tokenizer, "a", " lies on Aska"))
    tools = Tools(0, 64, tokenizer, predictor=Scorer.load(str(tmp_path)))
    assert STRATEGIES.load("mn").add([group], [group], {"count": 50, "mn_share": 1.0}, tools) == {}
    assert all(0 < token < vocabulary for candidate in group.negatives for token in candidate.ids[:-1])


def test_un_answers_as_the_template_writes_an_answer(tokenizer: Any) -> None:
    group, end = chats(tokenizer)[0], end_of(tokenizer)
    un: Any = STRATEGIES.load("un")
    words = tokenizer("I do not know.")["input_ids"]
    for reason, context, ids in (("stop", 512, [*words, end]), ("length", 512, words)):
        candidate = un._candidate(Answer(" I do not know.\n", reason), 1, group, Tools(0, context, tokenizer))
        assert (candidate.ids, candidate.text, candidate.finish_reason) == (ids, "I do not know.", reason)
    context = len(group.prompt_ids) + len(words)  # no room for the end
    candidate = un._candidate(Answer("I do not know.", "stop"), 1, group, Tools(0, context, tokenizer))
    assert (candidate.ids, candidate.finish_reason) == (words, "length")
    ending = tokenizer.convert_ids_to_tokens(end)
    assert (
        un._candidate(Answer(f"I do{ending} not.", "stop"), 1, group, Tools(0, 512, tokenizer))
        == "special token in response"
    )


@pytest.mark.parametrize("space", ["", " ", "\n"])
def test_un_does_not_repeat_the_white_space_that_a_template_writes(reference: Path, space: str) -> None:
    tokenizer = odd.with_tokens(
        reference,
        [],
        f"{{% for m in messages %}}[{{{{ m.role }}}}]{space}{{{{ m.content }}}}"
        "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    )
    group = chats(tokenizer)[0]
    un: Any = STRATEGIES.load("un")
    candidate = un._candidate(Answer(" I do not know.", "stop"), 1, group, Tools(0, 512, tokenizer))
    assert candidate.text == f"{space}I do not know."
    assert candidate.ids == [*tokenizer(candidate.text)["input_ids"], tokenizer.eos_token_id]


def test_un_and_tn_read_and_go_on_as_the_truth_does_where_words_have_beginnings() -> None:
    tokenizer = odd.sentencepiece()
    group = Group("g", "the cat", " there to go", *_ids(tokenizer, "the cat", " there to go"))
    tools = Tools(0, 64, tokenizer)
    assert STRATEGIES.load("tn").add([group], [group], {"count": 2}, tools) == {}
    assert {c.text for c in group.negatives} == {" there", " there to"}
    un: Any = STRATEGIES.load("un")
    candidate = un._candidate(Answer("to go", "stop"), 1, group, tools)
    assert odd.spelled(tokenizer, candidate.ids) == ["▁to", "▁go", "</s>"]
    assert candidate.text == " to go"


def _ids(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], list[int]]:
    [group] = prepare_groups(
        [as_example(prompt, response, "prompt-completion")], "prompt-completion", tokenizer, 64
    ).groups
    return group.prompt_ids, group.response_ids


# What a set says of its ends


def test_a_manifest_names_ends_where_there_are_more_than_eos(tokenizer: Any, reference: Path) -> None:
    from data.models import load_tokenizer

    ends = sorted({0, end_of(tokenizer)})
    assert describe_ends(marks_of(tokenizer)) == {"eos_token_id": 0, "end_token_ids": ends}
    assert described_ends(describe_ends(marks_of(tokenizer))) == set(ends)
    plain = describe_ends(marks_of(load_tokenizer(str(reference))))
    assert plain == {"eos_token_id": 0}  # as in every set so far
    assert described_ends(plain) == {0}


def table_of(*groups: Group) -> pa.Table:
    return groups_to_table(groups, ["none"])


def test_verify_finds_what_ends_otherwise_or_goes_on_after_its_end(tokenizer: Any) -> None:
    group, end = chats(tokenizer)[0], end_of(tokenizer)
    STRATEGIES.load("tn").add([group], [group], {"count": 2}, Tools(0, 512, tokenizer))
    ends = {0, end}
    assert checks.token_problems(table_of(group), "s", ends) == []
    group.response_ids += [9, 0]  # as it was tokenised by version 0.5
    group.negatives[0].ids.insert(1, end)
    assert checks.token_problems(table_of(group), "s", ends) == [
        f"s: the ground truth of group {group.id} goes on after its end ({end})",
        f"s: a negative of group {group.id} goes on after its end ({end})",
    ]
    group.response_ids = [9, 9]
    assert checks.token_problems(table_of(group), "s", ends)[0] == (
        f"s: the ground truth of group {group.id} ends with 9, not with EOS (0, {end})"
    )


def test_extend_refuses_ends_that_are_not_the_sets(tokenizer: Any) -> None:
    _refuse_other_ends({0, 5}, [5, 0], "m")
    with pytest.raises(UserError, match=r"end with the ids \[0\], those of 'm' with \[0, \d+\]"):
        _refuse_other_ends(described_ends({"eos_token_id": 0}), marks_of(tokenizer).ends, "m")


def test_extend_refuses_a_reference_whose_config_was_changed(caplog: pytest.LogCaptureFixture) -> None:
    _refuse_other_config("a", "a", "m")
    with pytest.raises(UserError, match=r"reference model had a config\.json with hash a, that of 'm' has b: other"):
        _refuse_other_config("a", "b", "m")
    _refuse_other_config(None, "b", "m")
    assert "does not say what config.json its reference model had" in caplog.text


# The engine


TURNS = "{% for m in messages %}{{ m.content }}{{ '<end>' if m.role == 'assistant' else '' }}{% endfor %}"


def test_the_engine_ends_samples_greedy_answers_and_beams_where_a_turn_ends(engines: Any, tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from tests.support.answering import save_toy_model
    from tests.support.tiny import tiny_model

    save_toy_model(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([AddedToken("<end>", normalized=False)])  # not special
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=6, seed=3, scale=1.0).save_pretrained(tmp_path)
    engine = engines.Engine(str(tmp_path))
    [samples] = engine.draw([Request([1, 2], 64, 0, 1.0, 40, 0)])
    lasts = {sample.ids[-1] for sample in samples if sample.finish_reason == "stop"}
    assert lasts == {0, 5}
    samples += engine.decode([[1, 2], [3]], max_tokens=[40, 40], beams=2)
    samples += engine.decode([[1, 2], [3]], max_tokens=[40, 40], seeds=[1, 2])
    for sample in samples:
        assert not {0, 5} & set(sample.ids[:-1])
        assert (sample.ids[-1] in (0, 5)) == (sample.finish_reason == "stop")
        assert "<end>" not in sample.text


def test_the_engine_gives_texts_that_stand_behind_their_prompts(engines: Any, tmp_path: Path) -> None:
    tokenizer = odd.save_model(tmp_path, odd.sentencepiece())
    engine = engines.Engine(str(tmp_path))
    prompt = tokenizer("the cat")["input_ids"]
    [samples] = engine.draw([Request(prompt, 32, 0, 1.0, 8, 0)])
    begins = [s for s in samples if odd.spelled(tokenizer, s.ids)[0].startswith("▁") and len(s.ids) > 1]
    assert begins
    for sample in samples:
        assert tokenizer.decode(prompt, skip_special_tokens=True) + sample.text == tokenizer.decode(
            [*prompt, *sample.ids], skip_special_tokens=True
        )
    assert all(sample.text.startswith(" ") for sample in begins)
