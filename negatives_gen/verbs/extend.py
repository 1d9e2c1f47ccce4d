"""`python -m negatives_gen extend SET --out NEW`: a set with more strategies, candidates or ranking signals.

What the set has is copied, not made or scored again. The result equals a set made in one go with all of it, rejects
included. Exceptions are strategies that sample or ask an API: of their negatives count and provenance are equal, and
rows that the set rejects already are not sampled or asked for.
"""

import dataclasses
import logging
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from data.command.entries import flat, from_settings, nested, over, undecided
from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import entry_options, load_config, option, resolve_path
from data.command.privacy import holds_hidden, usable_again, without_secrets
from data.command.terminated import ending_on_sigterm
from data.command.usage import answered
from data.manifest import JOB_SHAPE, MANIFEST, Manifest, first_difference
from data.places import is_inside
from data.shape import misfit
from data.shards import NegativeSet
from data.storage import sha256
from data.tokens import described_ends, marks_of
from negatives_gen.config import (
    RunOptions,
    idle_option,
    refuse_without_values,
    sampling,
    signal_names,
    strategy_counts,
)
from negatives_gen.signals import SIGNALS, Reference
from negatives_gen.strategies import STRATEGIES, job_settings

log = logging.getLogger(__name__)

USAGE = "python -m negatives_gen extend SET --out NEW [--strategies an=15,bn=3] [--signals rouge] [--key value]"
ABOUT = """
Write a new negative set that holds all of SET and more: --strategies names the counts that the new set shall have
(strategies not named stay as they are), --signals the ranking signals to add. Nothing of SET is made or scored again,
and SET stays as it is. How SET's own strategies make negatives is what its manifest says; the options below are for
what is new, save --engine.* and what does not decide the negatives, such as the address of a server that has moved. An
interrupted run goes on with the same command.
"""


@dataclass
class ExtendConfig(RunOptions):
    """What to add, and where the new set goes."""

    out: str = option(None, "directory or URL of the new set", required=True, metavar="DIR")
    model: str | None = option(None, "the reference model, if it is not where the manifest says", metavar="PATH")
    sampler: str | None = option(
        None,
        "model that samples, if it is not where the manifest says, or if the set has nothing sampled so far",
        metavar="PATH",
    )
    strategies: list[str] = option(
        [], "counts of the new set, of those strategies that grow or are new, e.g. an=15,bn=3", metavar="NAME=N"
    )
    strategy_options: dict[str, Any] = entry_options(
        STRATEGIES,
        chosen_by="strategies",
        given_only=True,
        help="how new strategies make negatives, and what does not decide what one makes",
    )
    signals: list[str] = option([], "ranking signals to add, e.g. rouge,bleu", metavar="NAME")
    signal_options: dict[str, Any] = entry_options(
        SIGNALS,
        chosen_by="signals",
        given_only=True,
        help="what new ranking signals are computed with, and where the set's models are, if they have moved",
    )

    def check(self) -> None:
        super().check()
        if not self.strategies and not self.signals:
            raise UserError("nothing to add: give --strategies, e.g. bn=3, or --signals, e.g. rouge.")


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

    with ending_on_sigterm():
        manifest = extend(argv[0], config)
    print_outcome(manifest, config.out, config.log_format)


def extend(path: str, config: ExtendConfig, components: Any = None) -> Manifest:
    """Make a negative set from a finished one, with more strategies, candidates or ranking signals.

    Args:
        path: the finished set to extend.
        components: see `negatives_gen.job.job.generate`.

    Raises:
        UserError: nothing to add, another reference model or embedder than the set's, or as `generate` says.
    """
    from data.model_settings import config_hash
    from data.models import (
        check_model,
        context_length,
        hash_of_all_weights,
        load_tokenizer,
        model_directory,
        tokenizer_hash,
        vocabulary_size,
        weights_hash,
    )
    from negatives_gen.job.actors import Components, Work
    from negatives_gen.job.inputs import ParentShards
    from negatives_gen.job.job import (
        for_stages,
        local_path,
        make_writer,
        outside_paths,
        run_job,
        signal_identities,
        try_signals,
        with_local_paths,
    )

    config.check()
    parent = NegativeSet(resolve_path(path), current=True)
    log.info("%s", parent.summary)
    if is_inside(resolve_path(config.out), parent.folder.path):
        raise UserError(f"--out '{config.out}' lies in the set that is extended. Choose another --out.")
    job = parent.manifest.job
    if wrong := misfit(job, JOB_SHAPE, "job"):
        raise UserError(f"the manifest of '{path}' is damaged ({wrong}), so it cannot be extended. Restore it.")
    _load_outside(job)
    strategies = _grown(job["strategies"], config)
    growing = {name: settings for name, settings in strategies.items() if _grows(name, settings, job["strategies"])}
    _refuse_unread(growing, [name for name in signal_names(config.signals) if name not in job["signals"]])
    refuse_without_values(strategies, signal_names(config.signals))
    _refuse_idle_options(config, job["strategies"], growing)
    signals = _signal_options(job["signals"], config)
    samples = bool(sampling(growing))
    sampler_name = _sampler_name(job, config, samples)
    # Only now what takes time: a model's weights are hashed.
    name = config.model or job["model"]["name"]
    model = local_path(name)
    check_model(model)
    parent.check_reference(weights_hash(model), name, lambda: hash_of_all_weights(model))
    config_sha256 = job["model"].get("config_sha256")
    _refuse_other_config(config_sha256, config_hash(model_directory(model), job["model"]), name)
    tokenizer = load_tokenizer(model, config.trust_remote_code)
    parent.check_tokenizer(tokenizer_hash(tokenizer), name)
    _refuse_other_ends(described_ends(job["tokenizer"]), marks_of(tokenizer).ends, name)

    engine = {**job["engine"], **config.engine} if samples else job["engine"]
    sampler = _sampler(sampler_name, job, config, model, tokenizer) if sampler_name is not None else None
    identities = signal_identities(signals, Reference(model, config.trust_remote_code))
    for signal, known in job["signals"].items():
        _refuse_other_signal(signal, known, identities[signal])

    if not growing and signals.keys() <= job["signals"].keys():
        log.warning("nothing is added to '%s': it has as many negatives and these signals already", path)
    writer = make_writer(
        config.out,
        without_secrets(
            {
                **job,
                **({"sampler": {**sampler.identity(), **job.get("sampler", {})}} if sampler else {}),
                "strategies": strategies,
                "signals": identities,
                "engine": engine,
            }
        ),
        list(signals),
        parent={"name": without_secrets(path), "manifest_sha256": sha256(parent.folder.read(MANIFEST))},
    )
    work = Work(
        model=model,
        source=ParentShards(
            parent.folder.path,
            vocabulary_size(model),
            context_length(model, sys.maxsize),
            widened=bool(sampling(strategies.keys() - job["strategies"].keys())),
        ),
        strategies=for_stages(growing, job),
        signals={name: with_local_paths(options) for name, options in signals.items()},
        writer=writer,
        context=job["data"]["context"],
        seed=job["seed"],
        dtype=job["model"]["scorer_dtype"],
        engine_options=_engine_options(job["engine"], config.engine) if samples else {},
        trust_remote_code=config.trust_remote_code,
        sampler=sampler,
        present=parent.manifest.stored,
        outside=outside_paths(strategies, signals),
        components=components or Components(),
    )

    def prepare() -> tuple[int, dict[str, Any]]:
        shards = len(parent.manifest.shards)
        if not writer.finished():
            try_signals(work, shards)
        return shards, parent.manifest.inputs

    return run_job(config, config.out, work, prepare)


def _sampler_name(job: dict[str, Any], config: ExtendConfig, samples: bool) -> str | None:
    """What samples, by name; None: the reference, or nothing samples. Raises UserError for one that would not."""
    if not samples:
        if config.sampler is not None:
            raise idle_option("sampler", sampling(STRATEGIES.names()), "added")
        return None
    known = job.get("sampler")
    named = config.sampler or (known["name"] if known else None)
    if named is not None and known is None and sampling(job["strategies"]):
        raise UserError(f"--sampler '{named}': what the set has was sampled from its reference. Leave it out.")
    return named


def _sampler(named: str, job: dict[str, Any], config: ExtendConfig, model: str, tokenizer: Any) -> Any:
    """What samples, of that name. Raises UserError for another one than the set's."""
    from data.models import context_length
    from negatives_gen.job.job import local_path
    from negatives_gen.job.sampling_model import sampling_model

    known = job.get("sampler")
    sampler = sampling_model(named, local_path(named), model, tokenizer, config.trust_remote_code)
    if (longest := context_length(sampler.model, sys.maxsize)) < job["data"]["context"]:
        raise UserError(
            f"--sampler '{named}' takes {longest} tokens, the set was made for {job['data']['context']}. Give another."
        )
    if known and (difference := first_difference(known, sampler.identity(), ignore=["name"])):
        key, was, found = difference
        raise UserError(f"the set was sampled from a model with {key} {was}, '{named}' has {found}. Give that model.")
    return sampler


def _load_outside(job: dict[str, Any]) -> None:
    """Import the set's strategies and signals that are not built in. Raises UserError if one is not what it was."""
    for registry, entries in ((STRATEGIES, job["strategies"]), (SIGNALS, job["signals"])):
        for name, entry in entries.items():
            origin = entry.get("origin")
            if not origin:
                continue
            if registry.name(origin["entry"]) != name:
                raise UserError(f"'{origin['entry']}' is no longer the set's {registry.kind} '{name}'. Restore it.")
            source = registry.origin(name)["source_sha256"]
            if source != origin["source_sha256"]:
                raise UserError(
                    f"the set's {registry.kind} '{name}' was made by '{origin['entry']}' with source "
                    f"{origin['source_sha256'][:16]}, which is {source[:16]} now: it would not make the same. Restore "
                    "that source, or give the new one another name."
                )


def _grown(known: dict[str, dict[str, Any]], config: ExtendConfig) -> dict[str, dict[str, Any]]:
    """The strategies of the new set with their settings. Raises UserError if one would shrink."""
    if not config.strategies:
        return known
    grown = dict(known)
    for name, count in strategy_counts(config.strategies).items():
        given = config.strategy_options.get(name, {})
        if name not in known:
            grown[name] = job_settings(name, count, over(STRATEGIES.load(name).Options(), given))
        elif count < known[name]["count"]:
            raise UserError(
                f"--strategies asks for {name}={count}, the set has {known[name]['count']} already. To "
                f"train on fewer, use `python -m trainer.run --use {name}={count}`."
            )
        elif count > known[name]["count"]:
            grown[name] = job_settings(name, count, over(_options_of(name, known[name]), _of_run(name, given)))
            _refuse_other_hashes(name, known[name], grown[name])
    return dict(sorted(grown.items()))


def _refuse_other_hashes(name: str, known: dict[str, Any], grown: dict[str, Any]) -> None:
    """Raise UserError if what grows is made of something else than what the set has, by the hashes of its settings."""
    options = [field.name for field in dataclasses.fields(STRATEGIES.load(name).Options)]
    if difference := first_difference(known, grown, ignore=[*options, "count", "least", "origin"]):
        key, was, would = difference
        raise UserError(
            f"the set's '{name}' was made with {key} {was}, this run would use {would}. Give what it was made of."
        )


def _refuse_unread(growing: Collection[str], signals: Collection[str]) -> None:
    """Raise UserError for strategies and signals that read in the data source what a finished set does not hold."""
    for registry, names in ((STRATEGIES, growing), (SIGNALS, signals)):
        if reading := [name for name in names if registry.load(name).reads]:
            raise UserError(
                f"{registry.kind} '{reading[0]}' reads {' and '.join(registry.load(reading[0]).reads)} in the rows of "
                "the data source, which a finished set does not hold. Generate another set of them."
            )


def _options_of(name: str, settings: dict[str, Any]) -> Any:
    return from_settings(STRATEGIES.load(name).Options, settings)


def _of_run(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The given options of a strategy that do not decide what it makes, such as a server's address."""
    found: dict[str, Any] = {}
    for key in undecided(STRATEGIES.load(name).Options):
        if key in flat(given):
            outer, _, inner = key.partition(".")
            found = {**found, outer: {**found.get(outer, {}), inner: given[outer][inner]} if inner else given[outer]}
    return found


def _grows(name: str, settings: dict[str, Any], known: dict[str, dict[str, Any]]) -> bool:
    return name not in known or settings["count"] > known[name]["count"]


def _refuse_idle_options(
    config: ExtendConfig, known: dict[str, dict[str, Any]], growing: dict[str, dict[str, Any]]
) -> None:
    """Raise UserError for an option that would change nothing, which the user would not notice."""
    holders: dict[str, list[str]] = {}
    for name, given in config.strategy_options.items():
        for key in flat(given):
            holders.setdefault(key, []).append(name)
    for key, names in holders.items():
        if any(name in growing and name not in known for name in names):
            continue
        decides = [name for name in names if name in known and key not in undecided(STRATEGIES.load(name).Options)]
        for name in decides:
            _refuse_other_value(name, key, flat(config.strategy_options[name])[key], known[name])
        if not decides and not any(name in growing for name in names):
            raise idle_option(key, names, "added")
    config.refuse_idle_engine(growing, "added")


def _refuse_other_value(name: str, key: str, value: Any, settings: dict[str, Any]) -> None:
    """Raise UserError if an option would give a strategy of the set other settings than it has."""
    strategy = STRATEGIES.load(name)
    if strategy.reads:  # see `_refuse_unread`
        raise UserError(f"--{key} {value} would change nothing: a finished set's '{name}' stays. Leave --{key} out.")
    own = _options_of(name, settings)
    changed = strategy.settings(over(own, nested(key, value)))
    if difference := first_difference(strategy.settings(own), changed, ignore=undecided(strategy.Options)):
        of, has, _ = difference
        raise UserError(
            f"--{key} {value} would change nothing: the set's own settings hold, its '{name}' has {of} "
            f"{flat(dataclasses.asdict(own)).get(of, has)}. Leave --{key} out."
        )


def _engine_options(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The engine options of the set's manifest under those of the user."""
    for key, value in known.items():
        if key not in given and holds_hidden(value):
            log.warning("the manifest hides engine.%s, this run does without it. Give it again: --engine.%s", key, key)
    return {**usable_again(known), **given}


def _signal_options(known: dict[str, dict[str, Any]], config: ExtendConfig) -> dict[str, Any]:
    """All signals with their options, the set's first.

    Raises:
        UserError: an unknown or repeated signal, an option out of range, or one of a signal that the new set has not.
    """
    names = [*known, *(name for name in signal_names(config.signals) if name not in known)]
    for name, given in config.signal_options.items():
        for key in flat(given):
            if name not in names:
                raise UserError(
                    f"--{key} would change nothing: the new set has no signal '{name}'. Add it by --signals."
                )
    return {
        name: over(from_settings(SIGNALS.load(name).Options, known.get(name, {})), config.signal_options.get(name, {}))
        for name in names
    }


def _refuse_other_config(known: str | None, found: str, name: str) -> None:
    """Raise UserError if the set's reference model has another configuration than it had."""
    if known is None:
        log.warning("the set does not say what config.json its reference model had: taken as that of '%s'.", name)
    elif known != found:
        raise UserError(
            f"the set's reference model had a config.json with hash {known[:16]}, that of '{name}' has {found[:16]}: "
            "other numbers would come of the same weights. Restore the file, or generate the set again."
        )


def _refuse_other_ends(known: Collection[int], found: Collection[int], name: str) -> None:
    """Raise UserError if what is added would end otherwise than what the set has."""
    if set(known) != set(found):
        raise UserError(
            f"the set's continuations end with the ids {sorted(known)}, those of '{name}' with {sorted(found)} (EOS, "
            "generation_config.json, chat template). Restore the model's files, or generate the set again."
        )


def _refuse_other_signal(signal: str, known: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UserError if the values that are added would not be those of the set's signal."""
    if "settings_sha256" in found.keys() - known.keys():
        log.warning("the set does not say with which settings its signal '%s' was computed: taken as today's.", signal)
        found = {name: value for name, value in found.items() if name != "settings_sha256"}
    if difference := first_difference(known, found, ignore=[*undecided(SIGNALS.load(signal).Options), "origin"]):
        key, was, would = difference
        raise UserError(
            f"the set's signal '{signal}' was computed with {key} {was}, this run would use {would}. Give the model it "
            "was made with."
        )
