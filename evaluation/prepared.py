"""What is evaluated, from the options to its record: all found out before anything is generated."""

import hashlib
from collections.abc import Sequence
from typing import Any

from data.command.errors import UserError
from data.sources.examples import fingerprint
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.checkpoints import Checkpoint, describe, load_checkpoints
from evaluation.answers.decoding import Decoding, parse_decoding
from evaluation.config import MLE, EvaluateConfig
from evaluation.metrics import METRICS
from evaluation.metrics.base import AnswerMetric, Metric, require_own
from evaluation.subject import Evaluation, Part

# What a sweep's CPO model is called in the record; it is measured as alpha-0 where that is asked for.
SWEEP_CPO = "cpo of --sweep"


def prepare(config: EvaluateConfig, store: Store) -> Evaluation:
    """Read the data, identify the checkpoints and tokenise the prompts, without loading weights.

    Raises:
        UserError: unusable models or data, or too few prompts for a sweep.
    """
    source = config.open_source(config.dataset, config.split, config.limit)
    examples = list(source)
    models, alphas = config.models(), config.alphas()
    if alphas:
        assert config.mle is not None  # EvaluateConfig.alphas
        assert config.cpo is not None
        models |= {MLE: config.mle, SWEEP_CPO: config.cpo}
    checkpoints = load_checkpoints(models, examples, config.task, config.dataset, store, config.max_length)
    mixed = checkpoints.pop() if alphas else None
    ids = [group.id for group in checkpoints[0].groups]
    test, validation = halves(ids) if alphas else (list(range(len(ids))), [])
    if alphas and not (test and validation):
        raise UserError(f"--sweep needs prompts to choose an alpha on and others to report on, got {len(ids)}.")
    return Evaluation(
        dataset=config.dataset,
        reading=config.describe_source(source),
        split=config.split,
        examples=len(examples),
        examples_sha256=fingerprint(examples),
        checkpoints=tuple(checkpoints),
        mixed=mixed,
        decodings=tuple({d.name: d for d in map(parse_decoding, config.decodings())}.values()),
        test=Part("test", test),
        validation=Part("validation", validation) if alphas else None,
        seed=config.seed,
        store=store,
    )


def halves(ids: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of the test half and of the validation half of prompts, by a hash of their ids alone."""
    chooses = [hashlib.sha256(i.encode()).digest()[0] % 2 == 1 for i in ids]
    return [i for i, v in enumerate(chooses) if not v], [i for i, v in enumerate(chooses) if v]


def more_decodings(evaluation: Evaluation, metrics: Sequence[Metric]) -> list[Decoding]:
    """The decodings that metrics are of and that were not asked for."""
    needed = [metric.decoding for metric in metrics if isinstance(metric, AnswerMetric) and metric.decoding]
    asked = {decoding.name for decoding in evaluation.decodings}
    return [parse_decoding(name) for name in dict.fromkeys(needed) if name not in asked]


def describe_models(evaluation: Evaluation, ensembles: Sequence[Checkpoint] = ()) -> dict[str, Any]:
    """A report's record of the checkpoints, and of the CPO model that a sweep mixes."""
    mixed = [] if evaluation.mixed is None else [evaluation.mixed]
    return describe([*evaluation.checkpoints, *ensembles, *mixed])


def describe_evaluation(config: EvaluateConfig, evaluation: Evaluation, metrics: Sequence[Metric]) -> dict[str, Any]:
    """A report's record of what is evaluated, and of all that decides the numbers.

    Raises:
        UserError: a metric adds a key that is not its own.
    """
    groups, measured = evaluation.groups, evaluation.test.prompts
    identities = [metric.identity() for metric in metrics]
    for metric, identity in zip(metrics, identities, strict=True):
        require_own(type(metric), identity)
    return {
        "models": describe_models(evaluation),
        "data": {
            "name": evaluation.dataset,
            **evaluation.reading,
            "split": evaluation.split,
            "examples": evaluation.examples,
            "examples_sha256": evaluation.examples_sha256,
            "used": len(groups),
            "measured": len(measured),
            "measured_sha256": hash_of({"ids": [groups[i].id for i in measured]}),
        },
        **({} if config.max_length is None else {"max_length": config.max_length}),
        "max_new_tokens": config.max_new_tokens,
        "seed": evaluation.seed,
        "metrics": [metric.name for metric in metrics],
        "entries": {m.name: origin for m in metrics if (origin := METRICS.origin(m.name))},
        "engine": config.engine,
        **{key: value for identity in identities for key, value in identity.items()},
        "paper": config.paper,
        "decodings": [decoding.name for decoding in evaluation.decodings],
        "baseline": evaluation.baseline,
    }
