"""Likelihoods under a second model: against transformers' own logits, an exact enumeration, and themselves."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from data.command.errors import UserError
from data.models import load_tokenizer, tokenizer_hash
from data.schema import Group
from evaluation.answers.answer_sets import AnswerSet
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import Checkpoint
from evaluation.answers.decoding import parse_decoding
from evaluation.answers.generations import GenerationSet, generate, identify_model
from evaluation.metrics.likelihood import (
    SecondModel,
    length_normalised_nll,
    reverse_kl,
    second_model_logps,
    truths_by,
)
from evaluation.metrics.pmi import PMI
from evaluation.metrics.second_model import SecondModelOptions
from evaluation.metrics.statistics import Estimate
from evaluation.on_demand import OnDemand
from evaluation.subject import Evaluation, Part
from negatives_gen.models.engine import Engine, Sample
from tests.support.answering import answer_logp, facts_groups, save_toy_model
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.seconds  # what most of its tests share takes seconds

EOS = 0
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def mean_of(values: Sequence[float | None]) -> Estimate:
    return Estimate.of([value for value in values if value is not None])


def set_of(groups: Sequence[Group], samples: Sequence[Sample], tokenizer_sha256: str) -> GenerationSet:
    return GenerationSet(
        {"model": {"tokenizer_sha256": tokenizer_sha256}}, "hash", [g.id for g in groups], list(samples)
    )


def save_sentencepiece_model(directory: Path, kind: str = "llama") -> tuple[Any, Any]:
    """Save a model over letters and a few words, with the beginning of each word marked as Llama's tokenizer does it.

    Args:
        kind: "llama": the mark of a text's first word comes from a normaliser; else `prepend_scheme` of Metaspace.

    Returns:
        model and tokenizer.
    """
    words = ["▁the", "▁cat", "▁things", "▁to", "▁go", "▁a", "▁ma"]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    listed = ["</s>", "<s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz.", *(a + b for a, b in merges)]
    pieces = Tokenizer(models.BPE({piece: i for i, piece in enumerate(listed)}, merges, unk_token="<unk>"))
    if kind == "llama":
        pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        marks = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        pieces.decoder = decoders.Sequence(marks)
    else:
        pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        pieces.decoder = decoders.Metaspace(prepend_scheme=kind)
    pieces.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(directory)
    model = tiny_model("llama", vocab_size=len(listed))
    model.save_pretrained(directory)
    return model, load_tokenizer(str(directory))


@pytest.fixture(scope="module")
def groups(answering_model: Path) -> list[Group]:
    return facts_groups(answering_model, 6)


@pytest.fixture(scope="module")
def tokenizer(answering_model: Path) -> Any:
    return load_tokenizer(str(answering_model))


@pytest.fixture(scope="module")
def model(reference: Path) -> Any:
    """`reference` as transformers loads it; its tokenizer is the answering model's."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def answers(groups: list[Group], tokenizer: Any) -> list[Sample]:
    """Other groups' ground truths: the odd ones cut before their EOS, one of them nothing but EOS."""
    ids = [g.response_ids if i % 2 == 0 else g.response_ids[:-1] for i, g in enumerate(groups)]
    ids = [*ids[1:], [EOS]]
    return [
        Sample(a, tokenizer.decode(a, skip_special_tokens=True), "stop" if a[-1] == EOS else "length", -1.0, None)
        for a in ids
    ]


def test_the_very_ids_are_scored_where_the_tokenizer_is_the_same(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path, model: Any
) -> None:
    generations = set_of(groups, answers, tokenizer_hash(tokenizer))
    found = second_model_logps(Store(str(tmp_path)), generations, groups, SecondModel(str(reference)))
    expected = [answer_logp(model, g.prompt_ids, s.ids) for g, s in zip(groups, answers, strict=True)]
    assert found.by == "ids"
    assert found.logps == pytest.approx(expected, abs=1e-3)
    assert found.tokens == [len(s.ids) for s in answers]
    assert found.problems == [""] * 6
    by_hand = [-logp / len(s.ids) for logp, s in zip(expected, answers, strict=True)]
    assert length_normalised_nll(found.logps, found.tokens) == pytest.approx(by_hand, abs=1e-3)


def test_text_gives_the_same_where_the_tokenizer_says_the_same(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path
) -> None:
    store, second = Store(str(tmp_path)), SecondModel(str(reference))
    by_ids = second_model_logps(store, set_of(groups, answers, tokenizer_hash(tokenizer)), groups, second)
    by_text = second_model_logps(store, set_of(groups, answers, "another tokenizer"), groups, second)
    assert (by_ids.by, by_text.by) == ("ids", "text")
    assert by_text.tokens == by_ids.tokens
    assert by_text.logps == pytest.approx(by_ids.logps, abs=1e-4)


def test_truths_are_read_as_answers_are(
    tmp_path: Path, groups: list[Group], tokenizer: Any, reference: Path, model: Any
) -> None:
    expected = [answer_logp(model, g.prompt_ids, g.response_ids) for g in groups]
    for known, by in ((tokenizer_hash(tokenizer), "ids"), ("another tokenizer", "text")):
        checkpoint = Checkpoint("m", str(reference), {"tokenizer_sha256": known}, 128, groups)
        found = truths_by(SecondModel(str(reference)), Store(str(tmp_path)), checkpoint)
        assert found.by == by
        assert found.logps == pytest.approx(expected, abs=1e-3)
        # Of another checkpoint they are the same: nothing is scored again.
        other = dataclasses.replace(checkpoint, identity={**checkpoint.identity, "weights_sha256": "others"})
        kept = SecondModel(str(reference))
        kept.scorer = OnDemand(lambda: pytest.fail("the second model was loaded again"))
        assert truths_by(kept, Store(str(tmp_path)), other) == found


def test_text_is_read_with_the_second_models_bos(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path, model: Any
) -> None:
    with_bos = load_tokenizer(str(reference))
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    directory = tmp_path / "with-bos"
    model.save_pretrained(directory)
    with_bos.save_pretrained(directory)
    generations = set_of(groups, answers, tokenizer_hash(tokenizer))
    found = second_model_logps(Store(str(tmp_path)), generations, groups, SecondModel(str(directory)))
    assert found.by == "text"
    expected = [answer_logp(model, [EOS, *g.prompt_ids], s.ids) for g, s in zip(groups, answers, strict=True)]
    assert found.logps == pytest.approx(expected, abs=1e-3)


def test_without_its_prompt_an_answer_stands_at_the_beginning_of_a_text(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path, model: Any
) -> None:
    store, generations = Store(str(tmp_path)), set_of(groups, answers, tokenizer_hash(tokenizer))
    second = SecondModel(str(reference))
    alone = second_model_logps(store, generations, groups, second, without_prompt=True)
    assert alone.logps == pytest.approx([answer_logp(model, [EOS], s.ids) for s in answers], abs=1e-3)
    by_text = set_of(groups, answers, "another")
    assert second_model_logps(store, by_text, groups, second, without_prompt=True) == dataclasses.replace(
        alone, by="text", logps=pytest.approx(alone.logps, abs=1e-4)
    )
    # Kept under a key of its own, and taken from there without a model.
    given, kept = second_model_logps(store, generations, groups, second), SecondModel(str(reference))
    assert given.logps != alone.logps
    assert second_model_logps(store, generations, groups, kept, without_prompt=True) == alone
    assert not kept.scorer.loaded
    assert not kept.tokenizer.loaded


@pytest.mark.parametrize(
    ("template", "bos", "first"),
    [("<s> $A", "<s>", "<s>"), ("$A", "<s>", "<s>"), ("$A", None, "</s>")],
    ids=["what its tokenizer puts there", "BOS", "EOS where there is no BOS"],
)
def test_without_their_prompts_answers_stand_behind_the_second_models_beginning_in_the_same_tokens(
    tmp_path: Path, template: str, bos: str | None, first: str
) -> None:
    model, pieces = save_sentencepiece_model(tmp_path / "pieces")
    pieces.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1)])
    pieces.bos_token = bos
    pieces.save_pretrained(tmp_path / "pieces")
    texts = [("the cat", " to go"), ("the th", "ings")]  # a token across the boundary is whole in both
    groups = [Group(str(i), prompt, "r", [9], [8, 0]) for i, (prompt, _) in enumerate(texts)]
    samples = [Sample([7, 0], answer, "stop", -1.0, None) for _, answer in texts]
    second, store = SecondModel(str(tmp_path / "pieces")), Store(str(tmp_path))
    found = [
        second_model_logps(store, set_of(groups, samples, "another"), groups, second, without_prompt=without)
        for without in (False, True)
    ]
    assert found[0].tokens == found[1].tokens == [3, 2]
    for i, words in enumerate((["▁to", "▁go"], ["▁things"])):
        ids = pieces.convert_tokens_to_ids([first, *words, "</s>"])
        assert found[1].logps[i] == pytest.approx(answer_logp(model, ids[:1], ids[1:]), abs=1e-3)


def test_pmi_is_of_asked_answers_and_says_what_it_is_not_of(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path, model: Any
) -> None:
    part = Part("test", range(6))
    evaluation = Evaluation(
        "facts", {"task": "t"}, "all", 6, "", (), None, (), part, None, 0, Store(str(tmp_path / "store"))
    )
    nothing = [*answers[:5], Sample([], "", "length", -1.0, None)]
    sets = [
        AnswerSet("a", decoding, groups, set_of(groups, said, tokenizer_hash(tokenizer)), asked)
        for decoding, said, asked in (("greedy", nothing, True), ("sample", answers, False))
    ]
    evidence = PMI(SecondModelOptions(str(reference)), evaluation).gather(sets)
    expected = [
        answer_logp(model, g.prompt_ids, s.ids) - answer_logp(model, [EOS], s.ids)
        for g, s in zip(groups[:5], answers[:5], strict=True)
    ]
    values = evidence.values["a", "greedy"]
    assert values["pmi_of_answer"] == pytest.approx([*expected, None], abs=1e-3)
    lengths = [len(s.ids) for s in answers[:5]]
    assert values["pmi"][:5] == pytest.approx([v / n for v, n in zip(expected, lengths, strict=True)], abs=1e-3)
    assert ("a", "sample") not in evidence.values
    assert evidence.notes(part) == ["1 greedy answer of a is in no mean under the second model: no tokens."]


def test_a_chat_is_read_with_the_second_models_template(
    tmp_path: Path, answers: list[Sample], tokenizer: Any, reference: Path, model: Any
) -> None:
    chatting = load_tokenizer(str(reference))
    chatting.chat_template = TEMPLATE
    directory = tmp_path / "chatting"
    model.save_pretrained(directory)
    chatting.save_pretrained(directory)
    chat = Group("chat", "as another template wrote it", "r", [9, 9], [8, EOS], messages=[
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"},
    ])  # fmt: skip
    found = second_model_logps(
        Store(str(tmp_path)), set_of([chat], answers[1:2], "another"), [chat], SecondModel(str(directory))
    )
    prompt = tokenizer("[system]Be brief.\n[user]Where is it?\n[assistant]")["input_ids"]
    assert answers[1].finish_reason == "stop"
    assert found.logps == pytest.approx([answer_logp(model, prompt, answers[1].ids)], abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "first", "always"])
def test_an_answer_is_read_behind_its_prompt_and_not_as_a_text_of_its_own(tmp_path: Path, kind: str) -> None:
    model, pieces = save_sentencepiece_model(tmp_path / "pieces", kind)
    texts = [("the cat", " things to go"), ("the ma", "sts"), ("a cat", ".")]
    alone = [pieces.convert_ids_to_tokens(pieces(a, add_special_tokens=False)["input_ids"]) for _, a in texts]
    assert (alone[0][0] == "▁") == (kind == "llama")  # a space that is not there
    assert alone[1][0].startswith("▁")  # the beginning of another word
    groups = [Group(str(i), prompt, "r", [9], [8, 0]) for i, (prompt, _) in enumerate(texts)]
    samples = [Sample([7], answer, "length", -1.0, None) for _, answer in texts]
    second = SecondModel(str(tmp_path / "pieces"))
    found = second_model_logps(Store(str(tmp_path)), set_of(groups, samples, "another"), groups, second)
    for i, (prompt, answer) in enumerate(texts):
        ids, whole = pieces(prompt)["input_ids"], pieces(prompt + answer)["input_ids"]
        assert whole[: len(ids)] == ids
        assert pieces.decode(whole[len(ids) :]).strip() == answer.strip()
        # BOS is before both.
        difference = answer_logp(model, whole[:1], whole[1:]) - answer_logp(model, ids[:1], ids[1:])
        assert found.logps[i] == pytest.approx(difference, abs=1e-3)
        assert found.tokens[i] == len(whole) - len(ids)


def test_a_token_across_the_boundary_belongs_to_the_answer(tmp_path: Path) -> None:
    model, pieces = save_sentencepiece_model(tmp_path / "pieces")
    texts = [("the th", "ings to go"), ("the ", "cat")]
    groups = [Group(str(i), prompt, "r", [9], [8, 0]) for i, (prompt, _) in enumerate(texts)]
    samples = [Sample([7, 0], answer, "stop", -1.0, None) for _, answer in texts]
    second = SecondModel(str(tmp_path / "pieces"))
    found = second_model_logps(Store(str(tmp_path)), set_of(groups, samples, "another"), groups, second)
    for i, words in enumerate((["▁things", "▁to", "▁go"], ["▁cat"])):
        before, answer = (pieces.convert_tokens_to_ids(tokens) for tokens in (["<s>", "▁the"], [*words, "</s>"]))
        assert pieces("".join(texts[i]))["input_ids"] == [*before, *answer[:-1]]
        assert found.logps[i] == pytest.approx(answer_logp(model, before, answer), abs=1e-3)
        assert found.tokens[i] == len(answer)


def test_without_a_token_before_the_answer_nothing_is_scored(
    tmp_path: Path, groups: list[Group], tokenizer: Any, reference: Path
) -> None:
    """A prompt that the answer's first token swallows, under a model without BOS."""
    token = next(t for t in tokenizer.get_vocab() if t.isalpha() and t.isascii() and len(t) > 3)
    split = [dataclasses.replace(groups[0], prompt=token[:1]), groups[1]]
    samples = [Sample([7], token[1:], "length", -1.0, None), Sample([7], " lies", "length", -1.0, None)]
    found = second_model_logps(
        Store(str(tmp_path)), set_of(split, samples, "another"), split, SecondModel(str(reference))
    )
    assert found.problems == ["no token of the prompt before the answer", ""]
    assert found.tokens[0] == 0


def test_answers_that_the_second_model_cannot_score_are_counted(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path
) -> None:
    word = answers[0].ids[0]
    long = [word] * (129 - len(groups[0].prompt_ids))
    samples = [
        Sample(long, tokenizer.decode(long), "length", -1.0, None),
        Sample([], "", "length", -1.0, None),
        Sample([word], "a <|endoftext|> spelled out", "length", -1.0, None),
        answers[3],
        Sample(long[:-1], tokenizer.decode(long[:-1]), "length", -1.0, None),
        answers[5],
    ]
    store, second = Store(str(tmp_path)), SecondModel(str(reference))
    # All prompts are the first group's, so that the context's very last token is known.
    same = [Group(g.id, groups[0].prompt, g.response, groups[0].prompt_ids, g.response_ids) for g in groups]
    too_long = "longer than the second model's context"
    by_ids = second_model_logps(store, set_of(same, samples, tokenizer_hash(tokenizer)), same, second)
    assert by_ids.problems == [too_long, "no tokens", "", "", "", ""]
    assert [logp is None for logp in by_ids.logps] == [True, True, False, False, False, False]
    by_text = second_model_logps(store, set_of(same, samples, "another"), same, second)
    assert by_text.problems[1:4] == ["no tokens", "special token in answer", ""]
    assert by_text.unscored(range(6))["special token in answer"] == 1
    assert by_text.unscored([1, 3]) == {"no tokens": 1}
    unscored = [True, True, False, False, False, False]
    assert [nll is None for nll in length_normalised_nll(by_ids.logps, by_ids.tokens)] == unscored
    assert [kl is None for kl in reverse_kl([s.logp for s in samples], by_ids.logps)] == unscored
    with pytest.raises(UserError, match=r"can score none of 2 answers: 1 .*, 1 .*\. Use another"):
        second_model_logps(store, set_of(same[:2], samples[:2], tokenizer_hash(tokenizer)), same[:2], second)


def test_an_id_that_only_the_policys_padded_embedding_has_is_counted(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path
) -> None:
    """Models of one tokenizer are padded to other numbers of rows, and a nameless row can be drawn."""
    second = SecondModel(str(reference))
    assert second.rows is not None
    samples = [Sample([answers[0].ids[0], second.rows], "", "length", -1.0, None), *answers[1:]]
    found = second_model_logps(Store(str(tmp_path)), set_of(groups, samples, tokenizer_hash(tokenizer)), groups, second)
    assert found.problems == ["a token that the second model has not", *[""] * 5]
    assert [logp is None for logp in found.logps] == [True, *[False] * 5]


def test_scores_are_kept_under_all_that_decides_them(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path, answering_model: Path
) -> None:
    store, generations = Store(str(tmp_path)), set_of(groups, answers, tokenizer_hash(tokenizer))
    found = second_model_logps(store, generations, groups, SecondModel(str(reference)))
    again = SecondModel(str(reference))
    assert second_model_logps(store, generations, groups, again) == found
    assert not again.scorer.loaded  # the model was not even loaded
    for second, changed in (
        (SecondModel(str(answering_model)), generations),
        (SecondModel(str(reference), dtype="bfloat16"), generations),
        (SecondModel(str(reference)), set_of(groups, answers[::-1], tokenizer_hash(tokenizer))),
        (SecondModel(str(reference)), set_of(groups, answers, "another")),
    ):
        second_model_logps(store, changed, groups, second)
        assert second.scorer.loaded
    assert len(list((tmp_path / "likelihoods").iterdir())) == 5


def test_scores_by_text_are_kept_under_all_that_decides_the_tokens(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path
) -> None:
    store, generations = Store(str(tmp_path / "store")), set_of(groups, answers, "another")
    chatting = tmp_path / "chatting"
    shutil.copytree(reference, chatting)
    config = chatting / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    other = [dataclasses.replace(groups[0], prompt=groups[1].prompt), *groups[1:]]
    said = [dataclasses.replace(answers[0], text=answers[2].text), *answers[1:]]
    cases: list[tuple[Path, list[Group], GenerationSet]] = [
        (reference, groups, generations),
        (chatting, groups, generations),
        (reference, other, generations),
        (reference, groups, set_of(groups, said, "another")),
    ]
    first = []
    for path, of, made in cases:
        second = SecondModel(str(path), store=store)
        first.append(second_model_logps(store, made, of, second))
        assert second.scorer.loaded
    assert len(list((tmp_path / "store" / "likelihoods").iterdir())) == 4
    for (path, of, made), before in zip(cases, first, strict=True):
        second = SecondModel(str(path), store=store)
        assert second_model_logps(store, made, of, second) == before
        assert not second.scorer.loaded
        assert not second.tokenizer.loaded


def test_a_kept_tokenizers_hash_follows_its_files(tmp_path: Path, reference: Path) -> None:
    model, store = tmp_path / "model", Store(str(tmp_path / "store"))
    shutil.copytree(reference, model)
    assert SecondModel(str(model), store=store).identity == SecondModel(str(model)).identity
    changed = load_tokenizer(str(model))
    changed.add_tokens([AddedToken("zebra")])
    changed.save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": len(changed)}))
    assert SecondModel(str(model), store=store).identity["tokenizer_sha256"] == tokenizer_hash(changed)


def test_a_second_model_that_cannot_be_loaded_is_refused_in_words(
    tmp_path: Path, groups: list[Group], answers: list[Sample], tokenizer: Any, reference: Path
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        SecondModel(str(tmp_path / "nothing"))
    damaged = tmp_path / "damaged"
    model: Any = AutoModelForCausalLM.from_pretrained(reference)
    model.save_pretrained(damaged)
    tokenizer.save_pretrained(damaged)
    config = damaged / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no-such-model"'))
    with pytest.raises(UserError, match=r"^transformers cannot load the second model [^\n]+$"):
        second_model_logps(Store(str(tmp_path)), set_of(groups, answers, "another"), groups, SecondModel(str(damaged)))
    assert not (tmp_path / "likelihoods").exists()


def test_reverse_kl_and_nll_by_hand() -> None:
    assert reverse_kl([-1.0, -2.0, -3.0], [-2.0, -5.0, None]) == [1.0, 3.0, None]
    assert length_normalised_nll([-2.0, None, -8.0], [1, 5, 2]) == [2.0, None, 4.0]
    with pytest.raises(ValueError):
        reverse_kl([-1.0], [-1.0, -2.0])


def test_reverse_kl_matches_an_exact_enumeration(tmp_path: Path) -> None:
    """Over five tokens and at most three of them every answer can be listed."""
    q, p = (save_toy_model(tmp_path / name, seed) for name, seed in (("q", 1), ("p", 2)))
    prompt, words = [3, 1], [1, 2, 3, 4]
    listed = [[*start, EOS] for n in range(3) for start in itertools.product(words, repeat=n)]
    listed += [list(whole) for whole in itertools.product(words, repeat=3)]
    log_q, log_p = (np.array([answer_logp(model, prompt, answer) for answer in listed]) for model in (q, p))
    assert np.exp(log_q).sum() == pytest.approx(1.0, abs=1e-5)
    exact = float((np.exp(log_q) * (log_q - log_p)).sum())
    lengths = np.array([len(answer) for answer in listed])
    exact_nll = float((np.exp(log_q) * -log_p / lengths).sum())
    assert exact > 0.1

    n, probabilities = 4000, np.exp(log_q) / np.exp(log_q).sum()
    drawn = np.random.default_rng(0).choice(len(listed), size=n, p=probabilities)
    samples = [
        Sample(listed[i], "", "stop" if listed[i][-1] == EOS else "length", float(log_q[i]), None) for i in drawn
    ]
    groups = [Group(str(i), "c a", "b", prompt, [2, EOS]) for i in range(n)]
    second = SecondModel(str(tmp_path / "p"))
    generations = set_of(groups, samples, tokenizer_hash(load_tokenizer(str(tmp_path / "q"))))
    found = second_model_logps(Store(str(tmp_path)), generations, groups, second)
    assert found.by == "ids"
    estimate = mean_of(reverse_kl([s.logp for s in samples], found.logps))
    assert estimate.n == n
    assert abs(estimate.mean - exact) < 3 * estimate.standard_error
    nll = mean_of(length_normalised_nll(found.logps, found.tokens))
    assert abs(nll.mean - exact_nll) < 3 * nll.standard_error


def test_a_model_has_no_divergence_from_itself(
    tmp_path: Path, engine: Engine, answering_model: Path, reference: Path, tokenizer: Any
) -> None:
    """Drawn and weighed by vLLM, scored by transformers: two programs, one model."""
    store, groups = Store(str(tmp_path)), facts_groups(answering_model, 40)
    identity = identify_model(str(answering_model), tokenizer_hash(tokenizer))
    drawn = generate(store, identity, {}, parse_decoding("sample"), groups, 20, 128, 0, lambda: engine)
    log_q = [s.logp for s in drawn.samples]
    seconds = [SecondModel(str(answering_model)), SecondModel(str(reference))]
    itself, other = (
        mean_of(reverse_kl(log_q, second_model_logps(store, drawn, groups, second).logps)) for second in seconds
    )
    assert abs(itself.mean) < 1e-3
    assert itself.standard_error < 1e-3
    assert other.mean > 10 * other.standard_error > 0
