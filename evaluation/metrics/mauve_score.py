"""MAUVE: how close the distribution of a model's texts is to that of the ground truths (Pillutla et al., NeurIPS 2021).

Computed by the authors' package `mauve-text` at its defaults (scaling factor 5, as many clusters as a tenth of the
texts), from features of our own, so that no hub is needed. A text is prompt and answer together, as the package asks
("a complete generation, including context"): alone, answers to other prompts than their own would score as well as
answers to the point. One that is longer than the featuriser takes loses its beginning, so that the answer stays.

MAUVE compares: between models on the same prompts, with the same featuriser. Its level depends on the featuriser and on
the number of texts.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.command.errors import UserError, first_line
from data.models import check_model, context_length, load_tokenizer, read_object
from data.schema import Group
from evaluation.answers.cache import Store
from evaluation.answers.weights import MODULES, identify_weights, settings_hash
from evaluation.metrics.statistics import Estimate

log = logging.getLogger(__name__)

# Ten clusters, of twenty texts each.
FEWEST_TEXTS = 100
# Fewer clusters see less: of made-up features, two sets at 0.55 by 2,000 texts score 0.61 by 1,000, 0.96 by 200 and
# 0.997 by 100.
FEW_TEXTS = 1000
# The score is a mean over so many runs of k-means, whose starting points alone move it by up to two thirds of its
# spread over fresh prompts.
RUNS = 5
# Random halves for the standard error.
HALVES = 20

SENTENCES, LANGUAGE_MODEL = "sentence-transformers", "causal-lm"


class Featuriser:
    """What turns texts into vectors: a sentence-transformers model's embedding, or, as in MAUVE's paper (GPT-2 large
    there), a causal language model's last hidden state at the last token. Loaded when it is first used.

    Args:
        name: local directory or hub id; one with a modules.json is taken as a sentence-transformers model.
        store: remembers the hash of its weights.

    Raises:
        UserError: it is neither kind, or incomplete.
    """

    def __init__(self, name: str, store: Store | None = None):
        self.name, self.store = name, store
        self.directory: Path = check_model(name)
        architectures = read_object(self.directory / "config.json").get("architectures") or []
        if (self.directory / MODULES).is_file():
            self.kind = SENTENCES
        elif any(str(a).endswith(("ForCausalLM", "LMHeadModel")) for a in architectures):
            self.kind = LANGUAGE_MODEL
        else:
            raise UserError(
                f"featuriser '{name}' is neither a sentence-transformers model (it has no modules.json) nor a causal "
                f"language model (its config.json names {', '.join(map(str, architectures)) or 'no architecture'})."
            )

    def identity(self) -> dict[str, str]:
        """What decides its features: kind, weights, and the settings beside them (pooling, lengths, tokenizer)."""
        return {"kind": self.kind, **self._hashes}

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts), D], float32. Raises UserError if the model cannot be loaded or gives nan."""
        vectors = self._embedder.embed(texts) if self.kind == SENTENCES else self._last_states(texts)
        if not np.isfinite(vectors).all():
            raise UserError(f"featuriser '{self.name}' gives features that are no numbers (nan). Choose another.")
        return vectors

    @cached_property
    def _hashes(self) -> dict[str, str]:
        weights = identify_weights(str(self.directory), self.store)
        return {**weights, "settings_sha256": settings_hash(self.directory)}

    @cached_property
    def _embedder(self) -> Any:
        from negatives_gen.models.embedder import Embedder

        embedder = Embedder(str(self.directory), "")
        embedder.model.tokenizer.truncation_side = "left"
        return embedder

    @cached_property
    def _language_model(self) -> Any:
        import torch
        from transformers import AutoModel

        try:
            model: Any = AutoModel.from_pretrained(self.directory, dtype=torch.float32, use_safetensors=True)
        except Exception as error:  # transformers raises a dozen unrelated classes
            raise UserError(f"transformers cannot load featuriser '{self.name}': {first_line(error)}") from error
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _last_states(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        model, tokenizer = self._language_model, load_tokenizer(str(self.directory))
        longest = context_length(str(self.directory))
        encoded = tokenizer(list(texts), verbose=False)["input_ids"]
        rows = [torch.tensor(ids[-longest:] or [tokenizer.eos_token_id]) for ids in encoded]
        batch_size = 64 if model.device.type == "cuda" else 8
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(rows)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in chosen], batch_first=True).to(model.device)
            ends = torch.tensor([len(rows[i]) - 1 for i in chosen], device=model.device)
            mask = (torch.arange(ids.shape[1], device=model.device) <= ends[:, None]).long()
            with torch.no_grad():
                states = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = states[torch.arange(len(chosen), device=model.device), ends].float().cpu().numpy()
            for i, vector in zip(chosen, last, strict=True):
                vectors[i] = vector
        return np.stack(vectors)


def measure_mauve(
    store: Store, featuriser: Featuriser, groups: Sequence[Group], answers: Sequence[str], seed: int = 0
) -> Estimate:
    """MAUVE of a model's answers against the ground truths of the same groups; features and score are kept in store.

    Args:
        answers: texts, in the order of the groups.

    Raises:
        UserError: fewer than FEWEST_TEXTS groups; no `mauve-text`; the featuriser cannot be loaded.
    """
    _require_enough(len(groups))
    truths = [group.prompt + group.response for group in groups]
    texts = [group.prompt + answer for group, answer in zip(groups, answers, strict=True)]
    hashes = {"truths_sha256": _hash(truths), "texts_sha256": _hash(texts)}
    key = {**featuriser.identity(), **hashes, "seed": seed, "mauve_text": _version()}

    def make() -> pa.Table:
        score = mauve(stored_features(store, featuriser, truths), stored_features(store, featuriser, texts), seed)
        return pa.table({"mean": [score.mean], "standard_error": [score.standard_error], "n": [score.n]})

    (row,) = store.get_or_make("mauve", key, make).to_pylist()
    return Estimate(**row)


def stored_features(store: Store, featuriser: Featuriser, texts: Sequence[str]) -> np.ndarray:
    """[len(texts), D], float32: a featuriser's features of texts, kept in the store."""

    def make() -> pa.Table:
        vectors = featuriser.features(texts)
        return pa.table({"features": pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])})

    table = store.get_or_make("features", {**featuriser.identity(), "texts_sha256": _hash(texts)}, make)
    return table["features"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)


def check_possible(n: int) -> None:
    """To be called once, before anything is generated: raise UserError for too few texts, or without `mauve-text`;
    warn where the score hangs on the number of texts."""
    _version()
    _require_enough(n)
    if n < FEW_TEXTS:
        log.warning(
            "MAUVE of %d texts is too high and imprecise (its authors take 5,000): compare it with scores of as many "
            "texts only.",
            n,
        )


def mauve(truths: np.ndarray, answers: np.ndarray, seed: int = 0) -> Estimate:
    """MAUVE of features of answers against those of ground truths; 1 if they are the same, towards 0 if far apart.

    The mean over RUNS runs of k-means. The standard error is a delete-half jackknife's: the spread of the score over
    random halves of the prompts, clustered anew into as many clusters as the whole. It errs on the side of caution: in
    simulations it was 1.2 to 1.6 times the spread over fresh prompts for scores of 0.4 to 0.7, three times at 0.9 and
    six times at 0.98. With as many clusters as a half would get of its own it fell as low as a fifth of that spread.

    Args:
        truths, answers: [n, D], row i of both of the same prompt.

    Raises:
        ValueError: features of different shapes.
    """
    if truths.shape != answers.shape:
        raise ValueError(f"features of different shapes: {truths.shape} and {answers.shape}")
    n = len(truths)
    clusters = round(n / 10)
    seeds = np.random.default_rng(seed)
    runs = [_score(truths, answers, clusters, seeds, restarts=5) for _ in range(RUNS)]
    halves = [seeds.permutation(n)[: n // 2] for _ in range(HALVES)]
    spread = [_score(truths[half], answers[half], clusters, seeds, restarts=1) for half in halves]
    return Estimate(float(np.mean(runs)), float(np.std(spread, ddof=1)), n)


def _require_enough(n: int) -> None:
    if n < FEWEST_TEXTS:
        raise UserError(
            f"MAUVE compares distributions and means nothing for {n} texts. Evaluate at least {FEWEST_TEXTS}, better "
            f"{FEW_TEXTS} (--limit), or leave it out of --metrics."
        )


def _version() -> str:
    try:
        return version("mauve-text")
    except PackageNotFoundError as error:
        raise UserError("MAUVE needs the package mauve-text. Install it (pip install mauve-text).") from error


def _score(truths: np.ndarray, answers: np.ndarray, clusters: int, seeds: np.random.Generator, restarts: int) -> float:
    from mauve import compute_mauve

    settings: dict[str, Any] = {"num_buckets": clusters, "kmeans_num_redo": restarts, "device_id": -1, "verbose": False}
    with _silent_stderr():
        found = compute_mauve(p_features=truths, q_features=answers, seed=int(seeds.integers(1 << 30)), **settings)
    return float(found.mauve)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Faiss writes a warning past Python each time: it would like more texts per cluster than MAUVE's rule gives it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()
