"""`python -m negatives_gen extend SET --out NEW`: a set with more strategies, candidates or ranking signals.

What the set has is copied, not made or scored again. The result equals a set made in one go with all of it, rejects
included. Exceptions are `an`, which is sampled, and `un`, which an API writes: of their negatives count and provenance
are equal, and rows that the set rejects already are not sampled or asked for.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from typing import Any

from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config, option, resolve_path
from data.command.privacy import holds_hidden, usable_again, without_secrets
from data.command.usage import answered
from data.counts import parse_counts
from data.manifest import MANIFEST, Manifest
from data.shards import NegativeSet, NegativeSetWriter
from data.storage import sha256
from negatives_gen.config import StrategyOptions
from negatives_gen.strategies import available, load_strategy
from negatives_gen.strategies.base import ASK, SAMPLE

log = logging.getLogger(__name__)

USAGE = "python -m negatives_gen extend SET --out NEW [--strategies an=15,bn=3] [--signals rouge] [--key value]"
ABOUT = """
Write a new negative set that holds all of SET and more: --strategies names the counts that the new set shall have
(strategies not named stay as they are), --signals the ranking signals to add. Nothing of SET is made or scored again,
and SET stays as it is. How SET's own strategies make negatives is what its manifest says; the options below are for
what is new, save --engine.* and, where the server of `un` has moved, --api.base_url. An interrupted run goes on with
the same command.
"""


def _of_new(name: str, help: str) -> Any:
    """An option that a strategy takes only if it is new; None if not given, which differs from the default given."""
    return option(None, f"of a new {help} (default: {getattr(StrategyOptions, name)})")


@dataclass
class ExtendConfig(StrategyOptions):
    """What to add, and where the new set goes."""

    strategies: str = option("", "counts of the new set, of those strategies that grow or are new, e.g. an=15,bn=3")
    signals: str = option("", "ranking signals to add, e.g. rouge,bleu")
    # None, unlike in the class above, is "not given": hence another type for the same option in the next six.
    embedder: str | None = option(None, "sentence-transformers name or path, if it is not where the manifest says")  # type: ignore[assignment]  # see above
    top_k: int | None = _of_new("top_k", "an: sample among the k most likely tokens (0: all)")  # type: ignore[assignment]  # see above
    temperature: float | None = _of_new("temperature", "an: sampling temperature")  # type: ignore[assignment]  # see above
    max_new_tokens: int | None = _of_new("max_new_tokens", "an or un: its tokens, at most")  # type: ignore[assignment]  # see above
    bn_batch_size: int | None = _of_new("bn_batch_size", "bn: rows of a batch")  # type: ignore[assignment]  # see above
    mn_share: float | None = _of_new("mn_share", "mn: share of the tokens that are redrawn")  # type: ignore[assignment]  # see above
    out: str = option(None, "directory or URL of the new set", required=True)
    model: str | None = option(None, "the reference model, if it is not where the manifest says")

    def check(self) -> None:
        if not self.strategies and not self.signals:
            raise UserError("nothing to add: give --strategies, e.g. bn=3, or --signals, e.g. rouge.")
        self.check_run()


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, ExtendConfig, usage=USAGE, about=ABOUT):
        return
    if not argv or argv[0].startswith("-"):
        raise UserError("python -m negatives_gen extend needs the set to extend: extend SET --out NEW ...")
    config = load_config(ExtendConfig, argv[1:], command="python -m negatives_gen extend")
    start_logging(config.log_format)
    from negatives_gen.job.progress import print_outcome

    print_outcome(extend(argv[0], config), config.out, config.log_format)


def extend(path: str, config: ExtendConfig, components: Any = None) -> Manifest:
    """Make the extended set.

    Args:
        path: the finished set to extend.
        components: see `negatives_gen.job.job.generate`.

    Raises:
        UserError: nothing to add, another reference model or embedder than the set's, or as `generate` says.
    """
    from data.models import check_model, load_tokenizer, tokenizer_hash, weights_hash
    from negatives_gen.job.actors import Components, Work
    from negatives_gen.job.inputs import ParentShards
    from negatives_gen.job.job import local_path, make_signal_options, run_job, signal_identities

    config.check()
    parent = NegativeSet(resolve_path(path), current=True)
    job = parent.manifest.job
    name = config.model or job["model"]["name"]
    model = local_path(name)
    check_model(model)
    parent.check_reference(weights_hash(model), name)
    parent.check_tokenizer(tokenizer_hash(load_tokenizer(model, config.trust_remote_code)), name)

    strategies = _grown(job["strategies"], config)
    growing = {name: settings for name, settings in strategies.items() if _grows(name, settings, job["strategies"])}
    _refuse_idle_options(config, job["strategies"], growing)
    samples = any(load_strategy(name).stage == SAMPLE for name in growing)
    engine = {**job["engine"], **config.engine} if samples else job["engine"]
    config, names = _with_signals(config, job["signals"])
    options = make_signal_options(config, model)
    identities = signal_identities(config, names, options)
    for signal, known in job["signals"].items():
        _refuse_other_signal(signal, known, identities[signal])

    writer = NegativeSetWriter(
        resolve_path(config.out),
        without_secrets({**job, "strategies": strategies, "signals": identities, "engine": engine}),
        names,
        parent={"name": without_secrets(path), "manifest_sha256": sha256(parent.folder.read(MANIFEST))},
    )
    work = Work(
        model=model,
        source=ParentShards(parent.folder.path),
        strategies=growing,
        signals=names,
        signal_options=options,
        writer=writer,
        context=job["data"]["context"],
        seed=job["seed"],
        dtype=job["model"]["scorer_dtype"],
        engine_options=_engine_options(job["engine"], config.engine) if samples else {},
        trust_remote_code=config.trust_remote_code,
        components=components or Components(),
    )
    return run_job(config, config.out, work, lambda: (len(parent.manifest.shards), parent.manifest.inputs))


def _grown(known: dict[str, dict[str, Any]], config: ExtendConfig) -> dict[str, dict[str, Any]]:
    """The strategies of the new set with their settings. Raises UserError if one would shrink."""
    if not config.strategies:
        return known
    grown = dict(known)
    counts = parse_counts(config.strategies, "--strategies", available())
    options = _for_new_strategies(config)
    for name, count in counts.items():
        if name in known:
            if count < known[name]["count"]:
                raise UserError(
                    f"--strategies asks for {name}={count}, the set has {known[name]['count']} already. To "
                    f"train on fewer, use `python -m trainer.run --use {name}={count}`."
                )
            if count > known[name]["count"]:
                grown[name] = {**load_strategy(name).settings_to_grow(known[name], options), "count": count}
        else:
            grown[name] = {"count": count, **load_strategy(name).settings(options)}
    return dict(sorted(grown.items()))


def _grows(name: str, settings: dict[str, Any], known: dict[str, dict[str, Any]]) -> bool:
    return name not in known or settings["count"] > known[name]["count"]


def _for_new_strategies(config: ExtendConfig) -> StrategyOptions:
    """The options, with the usual defaults in place of what is not given."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(StrategyOptions)}
    return StrategyOptions(**{name: value for name, value in options.items() if value is not None})


def _refuse_idle_options(
    config: ExtendConfig, known: dict[str, dict[str, Any]], growing: dict[str, dict[str, Any]]
) -> None:
    """Raise UserError for an option that would change nothing, which the user would not notice."""
    serves_new = {given for name in growing.keys() - known.keys() for given in load_strategy(name).options}
    for name, settings in known.items():
        for given, key in load_strategy(name).options.items():
            value = getattr(config, given)
            if value is not None and given not in serves_new and value != settings.get(key):
                raise UserError(
                    f"--{given} {value} would change nothing: the set's own settings hold, its '{name}' has {key} "
                    f"{settings.get(key)}. Leave --{given} out."
                )
    for given, stage in (("api", ASK), ("engine", SAMPLE)):
        if getattr(config, given) and not any(load_strategy(name).stage == stage for name in growing):
            names = " or ".join(f"'{name}'" for name in available() if load_strategy(name).stage == stage)
            raise UserError(
                f"--{given}.* would change nothing: no {names} is added. Leave it out, or add some by --strategies."
            )


def _engine_options(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The engine options of the set's manifest under those of the user."""
    for key, value in known.items():
        if key not in given and holds_hidden(value):
            log.warning("the manifest hides engine.%s, this run does without it. Give it again: --engine.%s", key, key)
    return {**usable_again(known), **given}


def _with_signals(config: ExtendConfig, known: dict[str, dict[str, Any]]) -> tuple[ExtendConfig, list[str]]:
    """The options with the models of the set's own signals filled in, and the names of all signals, the set's first."""
    given = {"embedding": "embedder", "reward": "reward_model", "bertscore": "bertscore_model"}
    chosen = {*known, *(name.strip() for name in config.signals.split(","))}
    for name, key in given.items():
        if getattr(config, key) and name not in chosen:
            raise UserError(f"--{key} would change nothing: the new set has no signal '{name}'. Add it by --signals.")
    filled = {key: known[name]["name"] for name, key in given.items() if name in known and not getattr(config, key)}
    if not config.embedder and "embedding" not in known:
        filled["embedder"] = StrategyOptions.embedder
    config = dataclasses.replace(config, **filled)
    added = config.signal_names() if config.signals else []
    return config, [*known, *(name for name in added if name not in known)]


def _refuse_other_signal(signal: str, known: dict[str, Any], found: dict[str, Any]) -> None:
    for key in known:
        if key != "name" and found.get(key) != known[key]:
            raise UserError(
                f"the set's signal '{signal}' was computed with {key} {known[key]}, this run would use "
                f"{found.get(key)}. Give the model it was made with."
            )
