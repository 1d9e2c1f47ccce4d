"""The steps of an evaluation that need models, one kind of model at a time; what the store has is not made again."""

import functools
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.command.errors import UserError
from data.command.options import resolve_path
from data.models import model_directory
from data.schema import Group
from data.sources.examples import fingerprint, load_examples
from data.sources.tasks import describe_task, task_of
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.checkpoints import Checkpoint, describe, ensemble_of, load_checkpoints
from evaluation.answers.decoding import Decoding, parse_decoding
from evaluation.answers.generations import generate
from evaluation.answers.weights import identify_weights, settings_hash
from evaluation.config import MLE, EvaluateConfig
from evaluation.measure import Answers, Mauve
from evaluation.metrics.likelihood import SecondModel, second_model_logps
from evaluation.metrics.mauve_score import Featuriser, measure_mauve
from evaluation.metrics.ranking import candidate_logps, ranking_metrics, truth_logps, truth_metrics
from evaluation.metrics.statistics import Estimate, Measurement

log = logging.getLogger(__name__)

# What a sweep's CPO model is called in the record; it is measured as alpha-0 where that is asked for.
SWEEP_CPO = "cpo of --sweep"


class Stages:
    """What is evaluated, and the steps in their order.

    Args:
        metrics: those that are wanted.

    Attributes:
        checkpoints: that are compared; a sweep's ensembles only after `add_ensembles`.
        mixed: the CPO model of a sweep, whose ensembles have its settings, tokenizer and prompts.

    Raises:
        UserError: unusable model, data or negative set.
    """

    def __init__(self, config: EvaluateConfig, store: Store, metrics: Sequence[str]):
        self.config, self.store, self.metrics = config, store, metrics
        self.examples = load_examples(config.dataset, config.task, config.split, config.limit)
        models = config.models()
        if config.alphas():
            assert config.mle is not None  # EvaluateConfig.alphas
            assert config.cpo is not None
            models |= {MLE: config.mle, SWEEP_CPO: config.cpo}
        found = load_checkpoints(models, self.examples, config.task, config.dataset, store)
        self.mixed = [found.pop()] if config.alphas() else []
        self.checkpoints = found
        self.ranked, self.ranked_dtype, self.signal, self.shards = _held_out_groups(config, metrics, self.checkpoints)
        self.featuriser = Featuriser(config.featuriser, store) if config.featuriser and "mauve" in metrics else None
        scored = {"reverse_kl", "nll"} & set(metrics)
        self.second = None
        if config.second_model and scored:
            self.second = SecondModel(config.second_model, dtype=config.second_model_dtype, store=store)
        self.embedder = _embedder_identity(config.embedder, store) if "similarity" in metrics else None

    def describe(self, kept: Sequence[int]) -> dict[str, Any]:
        """For the record: what is evaluated.

        Args:
            kept: indices of the prompts that the measurements are of.
        """
        config = self.config
        return {
            "models": self.describe_models(),
            "data": {
                "name": config.dataset,
                **describe_task(config.task),
                "split": config.split,
                "examples": len(self.examples),
                "examples_sha256": fingerprint(self.examples),
                "used": len(self.groups),
                "measured": len(kept),
                "measured_sha256": hash_of({"ids": [self.groups[i].id for i in kept]}),
            },
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
            "metrics": list(self.metrics),
            "engine": config.engine,
            "shards": self.shards,
            "featuriser": {"name": config.featuriser, **self.featuriser.identity()} if self.featuriser else None,
            "second_model": self.second.describe() if self.second else None,
            "embedder": self.embedder,
            "paper": config.paper,
        }

    def describe_models(self) -> dict[str, Any]:
        """For the record: the checkpoints, and the CPO model that a sweep mixes."""
        return describe([*self.checkpoints, *self.mixed])

    def add_ensembles(self, ensembles: Mapping[str, str]) -> None:
        """Compare these too: name -> path, made of the sweep's models."""
        for name, path in ensembles.items():
            self.checkpoints.append(ensemble_of(self.mixed[0], name, path, self.store))

    @property
    def groups(self) -> list[Group]:
        """The prompts, in their order, as the first checkpoint tokenises them."""
        return self.checkpoints[0].groups

    def generate(self, decodings: Sequence[Decoding]) -> list[Answers]:
        """Answers of each checkpoint by each decoding; for reverse KL also samples of its whole distribution."""
        asked = {d.name for d in decodings}
        wanted = [*decodings]
        if "reverse_kl" in self.metrics and "sample" not in asked:
            wanted.append(parse_decoding("sample"))
        every = []
        for number, checkpoint in enumerate(self.checkpoints, start=1):
            engine = _Engine(checkpoint.path, self.config)
            for decoding in wanted:
                print(
                    f"  answers of {checkpoint.name} ({number}/{len(self.checkpoints)}), {decoding.name}: "
                    f"{len(checkpoint.groups)} prompts",
                    flush=True,
                )
                made = generate(
                    self.store, checkpoint.identity, self.config.engine, decoding, checkpoint.groups,
                    self.config.max_new_tokens, checkpoint.context, self.config.seed, engine.start,
                )  # fmt: skip
                counted = decoding.name in asked
                every.append(Answers(checkpoint.name, decoding.name, checkpoint.groups, made, counted))
            engine.stop()
        return every

    def score_answers(self, every: Sequence[Answers]) -> None:
        """Likelihoods under the second model, similarities to the ground truths: whatever is wanted."""
        if self.second is not None:
            continued = task_of(self.config.task).over_long == "truncate"  # a text that is cut in two once tokenised
            paths = {checkpoint.name: checkpoint.path for checkpoint in self.checkpoints}
            for answers in every:
                answers.second = second_model_logps(
                    self.store, answers.generations, answers.groups, self.second,
                    continued_by=paths[answers.model] if continued else None,
                )  # fmt: skip
        if self.embedder is not None:
            load = functools.cache(functools.partial(_load_embedder, self.config))
            truths = self._embed([g.response for g in self.groups], load)
            for answers in every:
                if answers.asked:
                    answers.similarity = (truths * self._embed(answers.texts, load)).sum(-1)

    def mauve(self) -> Mauve | None:
        """What measures MAUVE, if it is wanted."""
        if self.featuriser is None:
            return None
        measured = functools.partial(measure_mauve, self.store, self.featuriser)
        return functools.partial(measured, seed=self.config.seed)

    def measure_checkpoints(self, kept: Sequence[int]) -> list[Measurement]:
        """What needs no answers: the ground truths' log-probabilities, the ranking of held-out groups.

        Args:
            kept: indices of the prompts whose ground truths count.
        """
        found: list[Measurement] = []
        for checkpoint in self.checkpoints:
            load = functools.lru_cache(maxsize=1)(functools.partial(_load_scorer, checkpoint.path))
            estimates: dict[str, Estimate] = {}
            if "truth" in self.metrics:
                logps = truth_logps(
                    self.store, checkpoint.identity, checkpoint.groups, functools.partial(load, "float32")
                )
                estimates |= truth_metrics([logps[i] for i in kept], [checkpoint.groups[i] for i in kept])
            if "ranking" in self.metrics:
                scores = candidate_logps(
                    self.store, checkpoint.identity, self.ranked, self.ranked_dtype,
                    functools.partial(load, self.ranked_dtype),
                )  # fmt: skip
                estimates |= ranking_metrics(scores, self.ranked, self.signal)
            found += [Measurement(checkpoint.name, "", name, value) for name, value in estimates.items()]
            if load.cache_info().currsize:
                load.cache_clear()
                gc.collect()  # the next model needs the room
        return found

    def _embed(self, texts: list[str], load: Callable[[], Any]) -> np.ndarray:
        """[len(texts), D], of unit length, kept in the store."""
        assert self.embedder is not None  # what calls this
        hashes = {key: self.embedder[key] for key in ("weights_sha256", "settings_sha256")}
        key = {**hashes, "texts_sha256": hash_of({"texts": texts})}
        table = self.store.get_or_make("embeddings", key, lambda: pa.table({"embedding": list(load().embed(texts))}))
        return np.stack(table["embedding"].to_numpy())


class _Engine:
    """A checkpoint's vLLM engine, started when it is first needed."""

    def __init__(self, path: str, config: EvaluateConfig):
        self.path, self.config = path, config
        self.engine: Any = None

    def start(self) -> Any:
        if self.engine is None:
            from negatives_gen.models.engine import Engine

            self.engine = Engine(self.path, seed=self.config.seed, options=self.config.engine)
        return self.engine

    def stop(self) -> None:
        if self.engine is not None:
            self.engine = None
            gc.collect()  # the next engine needs the room


def _load_scorer(path: str, dtype: str) -> Any:
    from trainer.scoring.logprobs import Scorer

    return Scorer.load(path, dtype=dtype)


def _load_embedder(config: EvaluateConfig) -> Any:
    from negatives_gen.models.embedder import Embedder

    assert config.embedder is not None  # EvaluateConfig.chosen_metrics
    return Embedder(config.embedder, "")


def _embedder_identity(embedder: str | None, store: Store) -> dict[str, str] | None:
    if embedder is None:
        return None
    try:
        weights = identify_weights(embedder, store)
    except UserError as error:
        raise UserError(
            f"embedder '{embedder}' cannot be reached or has no safetensors weights: give a local directory of a "
            "sentence-transformers model."
        ) from error
    return {"name": embedder, **weights, "settings_sha256": settings_hash(model_directory(embedder))}


def _held_out_groups(
    config: EvaluateConfig, metrics: Sequence[str], checkpoints: Sequence[Checkpoint]
) -> tuple[list[Group], str, str, dict[str, Any] | None]:
    """The groups of the negative set that belong to the split, the dtype that the reference scored them in, the signal
    that ranks them, and their identity."""
    from data.shards import NegativeSet

    if config.shards is None or "ranking" not in metrics:
        return [], "", "", None
    negatives = NegativeSet(resolve_path(config.shards))
    for checkpoint in checkpoints:
        negatives.check_tokenizer(checkpoint.identity["tokenizer_sha256"], checkpoint.path)
    groups = [g for g in negatives.groups() if config.split in ("all", g.split)]
    if not groups:
        raise UserError(
            f"negative set '{config.shards}' holds no groups of split '{config.split}'. Generate it with --split all "
            f"or --split {config.split}, or evaluate on another --split."
        )
    checksums = [shard.sha256 for shard in negatives.manifest.shards]
    dtype = negatives.manifest.job["model"]["scorer_dtype"]
    identity = {"name": config.shards, "groups": len(groups), "scorer_dtype": dtype, "sha256": checksums}
    return groups, dtype, negatives.signals[0], identity
