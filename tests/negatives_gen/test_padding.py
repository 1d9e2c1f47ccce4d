"""Texts of different lengths in one batch: each gets what it gets alone, whatever side its tokenizer pads on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from negatives_gen.models.batches import batches, minds_padding
from negatives_gen.models.embedder import Embedder
from negatives_gen.models.reward_model import RewardModel
from tests.support.tiny import ARCHITECTURES, save_tiny_model

TEXTS = ["a", " lies on Aska and was founded by Ada", "the cat", "", " so it is" * 9, "no<|endoftext|>"]
MODELS = ["gpt2", "llama"]  # with positions counted from the row's start, and relative ones
SIDES = ["left", "right"]
KINDS = {
    **ARCHITECTURES,
    "bert": {
        "model_type": "bert",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    },
}


def tokenizer_for(reference: Path, side: str, *, pads: bool = True) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.eos_token if pads else None
    return tokenizer


def save_scaled(directory: Path, kind: str, tokenizer: Any, auto: Any, **more: Any) -> Any:
    """A random model whose values differ visibly."""
    torch.manual_seed(0)
    settings = {**KINDS[kind], "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, **more}
    model = auto.from_config(AutoConfig.for_model(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("pads", [True, False], ids=["pads", "no pad token"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_reward_does_not_depend_on_the_batch(
    reference: Path, tmp_path: Path, kind: str, side: str, pads: bool
) -> None:
    tokenizer = tokenizer_for(reference, side, pads=pads)
    pad = {"pad_token_id": tokenizer.pad_token_id}
    alone = save_scaled(tmp_path, kind, tokenizer, AutoModelForSequenceClassification, num_labels=1, **pad)
    with torch.no_grad():
        ids = [tokenizer(text)["input_ids"] for text in TEXTS if text]
        expected = [alone(input_ids=torch.tensor([row])).logits[0, 0].item() for row in ids]
    rewards = RewardModel(str(tmp_path)).rewards
    found = [reward for reward, text in zip(rewards(TEXTS), TEXTS, strict=True) if text]
    assert found == pytest.approx(expected, abs=1e-4)
    assert rewards(TEXTS[::-1])[::-1] == pytest.approx(rewards(TEXTS), abs=1e-4)
    assert len({round(reward, 3) for reward in found}) == len(found)


@pytest.mark.parametrize("pads", [True, False], ids=["pads", "no pad token"])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_vector_does_not_depend_on_the_batch(
    reference: Path, tmp_path: Path, kind: str, side: str, pads: bool
) -> None:
    tokenizer = tokenizer_for(reference, side, pads=pads)
    model = save_scaled(tmp_path, kind, tokenizer, AutoModel)
    embedder = Embedder("reference", str(tmp_path))
    texts = [text for text in TEXTS if text]
    with torch.no_grad():
        states = [model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0) for text in texts]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
    assert embedder.embed(texts) == pytest.approx(expected, abs=1e-4)
    assert embedder.batch_size > 1


@pytest.mark.parametrize("side", SIDES)
def test_a_bertscore_does_not_depend_on_the_batch(reference: Path, tmp_path: Path, side: str) -> None:
    from data.schema import Candidate, Group
    from negatives_gen.signals import SIGNALS, Reference, load_signals

    save_scaled(tmp_path, "bert", tokenizer_for(reference, side, pads=False), AutoModel)
    (signal,) = load_signals(
        {"bertscore": SIGNALS.load("bertscore").Options(bertscore_model=str(tmp_path))}, Reference("")
    )

    def scores(*texts: str) -> list[float]:
        group = Group("g", "p", "the cat lies on the mat", [1], [2, 0])
        group.negatives = [Candidate("an", [3], text) for text in texts]
        signal.add([group])
        return [candidate.similarity["bertscore"] or 0.0 for candidate in group.negatives]

    texts = [text for text in TEXTS if text]
    assert scores(*texts) == pytest.approx([scores(text)[0] for text in texts], abs=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_features_of_a_language_model_do_not_depend_on_the_batch(reference: Path, tmp_path: Path, side: str) -> None:
    from transformers import AutoModelForCausalLM

    from evaluation.metrics.features import Featuriser

    save_scaled(tmp_path, "gpt2", tokenizer_for(reference, side), AutoModelForCausalLM)
    featuriser = Featuriser(str(tmp_path))
    expected = np.concatenate([featuriser.features([text]) for text in TEXTS])
    assert featuriser.features(TEXTS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_second_models_scores_do_not_depend_on_the_batch(
    reference: Path, tmp_path: Path, kind: str, side: str
) -> None:
    from trainer.scoring.continuations import Continuations
    from trainer.scoring.scorer import Scorer

    save_tiny_model(tmp_path, kind)
    tokenizer = tokenizer_for(tmp_path, side)
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer.load(str(tmp_path))
    groups = [Continuations([5], [tokenizer(text)["input_ids"] or [7]]) for text in TEXTS]
    alone = [scorer.score([group])[0] for group in groups]
    assert [logps[0] for logps in scorer.score(groups)] == pytest.approx([logps[0] for logps in alone], abs=1e-3)


# Models that mind padding


def counting(texts: list[str]) -> np.ndarray:
    """A model's forward that takes the padding for text."""
    return np.array([float(max(map(len, texts))) for _ in texts])


@pytest.mark.parametrize(
    ("compute", "minds"),
    [(counting, True), (lambda texts: np.array([float(len(t)) for t in texts]), False)],
)
def test_whether_a_model_minds_padding_is_found_by_trying(compute: Callable[..., Any], minds: bool) -> None:
    assert minds_padding(compute) is minds


def test_rows_of_a_model_that_minds_padding_share_a_batch_with_those_of_their_length_alone() -> None:
    assert list(batches([3, 1, 2, 1, 3, 3], 2)) == [[1, 3], [2, 0], [4, 5]]
    assert list(batches([3, 1, 2, 1, 3, 3], 2, padded=False)) == [[1, 3], [2], [0, 4], [5]]
    assert list(batches([], 2)) == []


def test_a_reward_model_that_reads_its_score_at_the_rows_end_gets_no_padding(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizer_for(reference, "left")
    save_scaled(tmp_path, "llama", tokenizer, AutoModelForSequenceClassification, num_labels=1, pad_token_id=0)
    from transformers import LlamaForSequenceClassification

    plain = LlamaForSequenceClassification.forward

    def forward(self: Any, input_ids: Any, attention_mask: torch.Tensor) -> Any:
        """The forward of custom code that counts on padding on the left."""
        states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        found = plain(self, input_ids=input_ids, attention_mask=attention_mask)
        found.logits = self.score(states[:, -1])
        return found

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", forward)
    model = RewardModel(str(tmp_path))
    assert not model.padded
    assert "texts of one length are scored together" in caplog.text
    texts = [text for text in TEXTS if text]
    assert model.rewards(texts) == pytest.approx([model.rewards([text])[0] for text in texts], abs=1e-5)
