"""A key for the hub is used, and is not saved beside the model."""

import os
import pickle
from pathlib import Path

import pytest

from trainer.arguments import PaperTrainingArguments

SECRET = "hf_not_beside_the_model"


def test_a_key_is_handed_to_the_hubs_client_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "another")
    training = PaperTrainingArguments(output_dir=str(tmp_path), hub_token=SECRET)
    assert os.environ["HF_TOKEN"] == SECRET
    assert training.hub_token is None
    assert SECRET.encode() not in pickle.dumps(training)  # training_args.bin
    assert SECRET not in training.to_json_string()
