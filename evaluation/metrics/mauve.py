"""MAUVE: how close the distribution of a model's texts is to that of the ground truths (Pillutla et al., NeurIPS 2021).

Computed by the authors' package `mauve-text` at its defaults (scaling factor 5, as many clusters as a tenth of the
texts), from features of our own, so that no hub is needed. A text is prompt and answer together, as the package asks
("a complete generation, including context"): alone, answers to other prompts than their own would score as well as
answers to the point. One that is longer than the featuriser takes loses its beginning, so that the answer stays.

MAUVE compares: between models on the same prompts, with the same featuriser. Its level depends on the featuriser and on
the number of texts.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from data.command.errors import UserError
from data.command.options import option
from evaluation.metrics.base import HIGHER, Column, Request, SetMetric
from evaluation.metrics.statistics import Estimate

if TYPE_CHECKING:
    from data.schema import Group
    from evaluation.answers.answer_sets import AnswerSet
    from evaluation.answers.cache import Store
    from evaluation.metrics.features import Featuriser
    from evaluation.subject import Evaluation

log = logging.getLogger(__name__)

KEY = "mauve"
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


@dataclass(frozen=True)
class MauveOptions:
    """Options of metric `mauve`."""

    featuriser: str | None = option(
        None,
        "a sentence-transformers model or a causal language model (mauve needs pip install mauve-text, GPLv3)",
        metavar="PATH",
        is_name=True,
    )


class Mauve(SetMetric):
    """MAUVE of a model's answers, for each part of the prompts by itself."""

    name = "mauve"
    summary = "how alike the answers and the ground truths are as distributions, 0 to 1"
    order = 60
    Options = MauveOptions
    columns = (
        Column(
            KEY,
            "MAUVE",
            "{:.3f}",
            "how alike the answers and the ground truths are as distributions, 0 to 1",
            better=HIGHER,
            paper="MAUVE",
        ),
    )
    record_schema: ClassVar = {"featuriser": {"type": ["object", "string", "null"]}}

    @classmethod
    def needs(cls, options: MauveOptions, request: Request) -> str:
        return "" if options.featuriser else "--featuriser"

    def __init__(self, options: MauveOptions, evaluation: "Evaluation"):
        from evaluation.metrics.features import Featuriser

        super().__init__(options, evaluation)
        assert options.featuriser is not None  # needs
        self.featuriser = Featuriser(options.featuriser, evaluation.store)
        check_possible(min(len(part.prompts) for part in evaluation.parts))

    def identity(self) -> dict[str, Any]:
        return {"featuriser": {"name": self.options.featuriser, **self.featuriser.identity()}}

    def drop(self) -> None:
        self.featuriser.drop()

    def estimates(self, answers: "AnswerSet", prompts: Sequence[int]) -> Mapping[str, Estimate]:
        groups, texts = [answers.groups[i] for i in prompts], [answers.texts[i] for i in prompts]
        return {KEY: measure_mauve(self.evaluation.store, self.featuriser, groups, texts, self.evaluation.seed)}


def measure_mauve(
    store: "Store", featuriser: "Featuriser", groups: Sequence["Group"], answers: Sequence[str], seed: int = 0
) -> Estimate:
    """MAUVE of a model's answers against the ground truths of the same groups; features and score are kept in store.

    Args:
        answers: texts, in the order of the groups.

    Raises:
        UserError: fewer than FEWEST_TEXTS groups; no `mauve-text`; the featuriser cannot be loaded.
    """
    import pyarrow as pa

    from evaluation.metrics.features import hash_of_texts, stored_features

    _require_enough(len(groups))
    truths = [group.prompt + group.response for group in groups]
    texts = [group.prompt + answer for group, answer in zip(groups, answers, strict=True)]
    hashes = {"truths_sha256": hash_of_texts(truths), "texts_sha256": hash_of_texts(texts)}
    key = {**featuriser.identity(), **hashes, "seed": seed, "mauve_text": _version()}

    def make() -> pa.Table:
        score = mauve(stored_features(store, featuriser, truths), stored_features(store, featuriser, texts), seed)
        return pa.table({"mean": [score.mean], "standard_error": [score.standard_error], "n": [score.n]})

    (row,) = store.get_or_make("mauve", key, make).to_pylist()
    return Estimate(**row)


def check_possible(n: int) -> None:
    """Raise UserError for too few texts, or without `mauve-text`; warn where the score hangs on the number of texts.

    To be called once, before anything is generated.
    """
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


METRIC = Mauve
