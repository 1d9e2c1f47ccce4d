"""The dataset card as the hub reads it."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from data.manifest import Manifest
from data.shards import NegativeSet
from negatives_gen.job.card import card


@pytest.fixture
def manifest(negative_set: Path) -> Manifest:
    """The set's manifest with what a job adds to it."""
    found = NegativeSet(str(negative_set)).manifest
    job = {
        **found.job,
        "model": {**found.job["model"], "name": "~/models/reference"},
        "data": {"name": "facts", "task": "prompt-completion", "split": "train"},
        "strategies": {"an": {"count": 3, "top_k": 50, "temperature": 1.0}, "tn": {"count": 1, "of": "a|b"}},
        "seed": 7,
    }
    return replace(found, job=job)


def test_the_card_says_what_is_in_the_set(manifest: Manifest) -> None:
    text = card(manifest)
    data = DatasetCard(text).data.to_dict()
    assert data["license"] == "other"
    assert data["size_categories"] == ["n<1K"]
    files = [{"split": "train", "path": "shard-*.parquet"}]
    assert data["configs"] == [{"config_name": "default", "data_files": files}]
    for line in (
        "| `an` | 3 | autoregressive: sampled from the reference model, or --sampler | top_k 50, temperature 1.0 |",
        "| `tn` | 1 | truncation: the ground truth cut at a random position | of a\\|b |",
        "| rows | 48 read, 48 groups, 0 rejected (`rejects.parquet` says why) |",
        f"| reference model | `~/models/reference`, weights SHA-256 `{manifest.job['model']['weights_sha256'][:16]}` |",
        "| data | `facts`, task `prompt-completion`, split `train` |",
        "| seed | 7 |",
    ):
        assert line in text.splitlines()
    assert (
        "Columns: `id`, `prompt`, `response`, `query` (what a person asked), `split` (half of the data source: train "
        "on `train` only), `prompt_ids`, `response_ids`, `reference_logp`, `in_support` (whether the sampler could "
        "have said the ground truth), `response_embedding`, "
        "`messages` (of a chat: list of `role`, `content`), `negatives` (list of `strategy`, `ids`, `text`, "
        "`reference_logp`, `sampler_logp` (under what was sampled from), `similarity`, `finish_reason`, `source_id`, "
        "`seed`). `manifest.json` holds checksums"
    ) in text
    assert "arXiv 2502.16433" in text
    assert "Not TRL's CPO of arXiv 2401.08417" in text
    assert str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    ("rows", "size"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (999_999, "100K<n<1M"), (1_000_000, "1M<n<10M")],
)
def test_the_size_category_is_the_hubs(manifest: Manifest, rows: int, size: str) -> None:
    larger = replace(manifest, counts={**manifest.counts, "rows_written": rows})
    assert DatasetCard(card(larger)).data.to_dict()["size_categories"] == [size]
