"""Ensembles of siblings of which one was saved with tensors that it does not compute with."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.command.errors import UserError
from data.models import weights_hash
from trainer.ensemble.ensembles import write_ensembles

WEIGHTS = "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"


def with_more(model: Path, directory: Path) -> Path:
    """A copy whose file also holds the embedding as a head, and a buffer of an older transformers."""
    shutil.copytree(model, directory)
    tensors = load_file(model / WEIGHTS)
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone(), BUFFER: torch.rand(8)}, directory / WEIGHTS)
    return directory


@pytest.mark.parametrize("side", ["mle", "cpo", "both"])
def test_an_ensemble_is_mixed_as_if_buffers_and_a_tied_head_were_not_there(
    mle: Path, cpo: Path, tmp_path: Path, side: str
) -> None:
    one, other = (with_more(m, tmp_path / m.name) if side in (m.name, "both") else m for m in (mle, cpo))
    [plain] = write_ensembles(str(mle), str(cpo), [0.3], tmp_path / "plain")
    [mixed] = write_ensembles(str(one), str(other), [0.3], tmp_path / "mixed")
    expected, found = load_file(plain / WEIGHTS), load_file(mixed / WEIGHTS)
    assert found.keys() - expected.keys() == (set() if side == "mle" else {HEAD, BUFFER})
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    if side != "mle":
        assert torch.equal(found[HEAD], found[EMBEDDING])
    assert weights_hash(str(mixed)) == weights_hash(str(plain))


def test_a_head_of_its_own_is_still_refused(mle: Path, cpo: Path, tmp_path: Path) -> None:
    other = with_more(cpo, tmp_path / "other")
    tensors = load_file(other / WEIGHTS)
    save_file({**tensors, HEAD: tensors[HEAD] + 1}, other / WEIGHTS)
    with pytest.raises(UserError, match=r"tensor 'lm_head.weight' of --cpo .* is missing in --mle"):
        write_ensembles(str(mle), str(other), [0.3], tmp_path / "out")
