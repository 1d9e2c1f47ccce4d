"""README.md of a model, as the hub reads it: what it was trained from, on what, towards what, and how to load it.

A card ends with a mark, the hash of all else: who changes a letter makes it theirs, and it is never written over.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data.command.entries import flat
from data.command.privacy import without_secrets
from data.command.wording import counted
from data.hub import on_hub
from data.models import model_directory
from data.storage import Folder, sha256

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from trainer.config import ScriptArguments
    from trainer.objectives.base import Objective

log = logging.getLogger(__name__)

CARD = "README.md"
HUB_DATA = "hf://datasets/"
MARK = "<!-- Written by trainer; a card that was changed is left alone. SHA-256 of what stands above: {} -->\n"
MARKED = re.compile(rb"(.*)" + re.escape(MARK.encode()).replace(rb"\{\}", rb"([0-9a-f]{64})"), re.DOTALL)
PAPER = "[arXiv 2502.16433](https://arxiv.org/abs/2502.16433)"
SHORT = 16  # digits of a hash
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
# Of a log, what says nothing of the model.
NO_METRIC = re.compile(
    r"step|epoch|grad_norm|learning_rate|mfu|total_flos|train_\w+|num_input_tokens_seen|.*(_per_second|runtime|seconds)"
)
# The keys of a run's record that its card shows as options, beside the objective's own.
SHOWN = ("use", "rank_by", "split", "min_similarity", "max_similarity", "in_support", "max_length", "skip_below")
TRAINING = ("learning_rate", "lr_scheduler_type", "weight_decay", "optim", "seed", "mixed_precision")
FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)


@dataclass(frozen=True)
class ModelFacts:
    """What a card says of a training run that hangs on no step of it.

    Attributes:
        name: what the model is called: its hub id, or the name of its folder.
        base: what it was trained from, as the user named it; "" where that is not known.
        licence: of the base; "" where it does not say.
        job: the run's record, or what is known of one.
        objective: half a line on it.
        options: of the objective.
        data: a line for each negative set, or for the ground truths.
        datasets: hub ids of the data.
        adapter: whether it is a LoRA adapter.
    """

    name: str
    base: str
    licence: str
    job: Mapping[str, Any]
    objective: str
    options: Mapping[str, Any]
    data: Sequence[str]
    datasets: Sequence[str]
    adapter: bool

    @classmethod
    def of(
        cls, script: "ScriptArguments", name: str, directory: Path, job: Mapping[str, Any], adapter: bool
    ) -> "ModelFacts":
        """The facts of a run.

        Args:
            name: what the model is called.
            directory: of the base.
            job: the run's record.
        """
        if script.shards:
            data, datasets = [_negative_set(path) for path in script.shards], _hub_ids(script.shards)
        else:
            from data.sources.source_name import SourceName

            where = SourceName.of(str(script.dataset)).where
            data = [f"ground truths of `{without_secrets(script.dataset)}`, task `{script.task}`"]
            datasets = [where] if "/" in where and on_hub(where) else []
        return cls(
            name=name,
            base=script.model,
            licence=licence_of(script.model, directory),
            job=job,
            objective=script.chosen.summary,
            options=_flat_options(script.options),
            data=data,
            datasets=datasets,
            adapter=adapter,
        )

    @classmethod
    def of_objects(
        cls, name: str, model: Any, identity: Mapping[str, str], args: "TrainingArguments", *, objective: "Objective",
        options: Any, train: Any, skip_below: float | None, adapter: bool,
    ) -> "ModelFacts":  # fmt: skip
        """The facts of a trainer that a program has made.

        Args:
            name: what the model is called.
            model: directory or hub id, or a loaded model.
            identity: its hashes, as far as they are known: of one that is loaded, none of its weights.
            options: of the objective, an instance.
            train: what is trained on: groups of negative sets, or others with the same methods; None: nothing.
        """
        if isinstance(model, str | Path):
            base, directory = str(model), model_directory(str(model))
        else:
            base = str(getattr(model.config, "_name_or_path", ""))
            directory = Path(base)
        store, choice = getattr(train, "store", None), getattr(train, "choice", None)
        paths = [negatives.folder.path for negatives in store.sets] if store else []
        data = [_negative_set(path) for path in paths]
        if train is not None and store is None:
            data.append(f"{counted(len(train), 'group')} that a program gave as `{type(train).__name__}`")
        job = {
            "objective": objective.name,
            "model": identity,
            "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "training": {key: getattr(args, key, None) for key in TRAINING},
            "skip_below": skip_below,
            **({"split": store.split, "in_support": store.in_support} if store else {}),
            **(choice.record if choice else {}),
        }
        return cls(
            name=name,
            base=base,
            licence=licence_of(base, directory) if base else "",
            job=job,
            objective=objective.summary,
            options=_flat_options(options),
            data=data,
            datasets=_hub_ids(paths),
            adapter=adapter,
        )


def training_card(facts: ModelFacts, logs: Sequence[Mapping[str, Any]], step: int, steps: int) -> str:
    """The card of a model that was trained for `step` of `steps` optimiser steps.

    Args:
        logs: of the run, in order; the last ones with a loss, and with a held-out one, are shown.
    """
    job, weights = facts.job, facts.job["model"].get("weights_sha256")
    from_scratch = "config_sha256" in facts.job["model"]
    objective = f"`{job['objective']}`: {facts.objective}"
    shown = {**facts.options, **{key: job[key] for key in SHOWN if job.get(key) not in (None, False)}}
    training = {key: job["training"].get(key) for key in TRAINING}
    said = f"`{_said(facts.base)}`" if facts.base else "one without a name"
    if from_scratch:
        base = "from scratch", f"by the configuration of {said}"
    elif weights:
        base = "base model", f"{said}, weights SHA-256 `{weights[:SHORT]}`"
    else:
        base = "base model", f"{said}, given loaded: its weights have no hash here"
    rows = [
        base,
        ("objective", objective),
        *(("data", line) for line in facts.data),
        ("options", _listed(shown)),
        ("training", f"step {step:,} of {steps:,}, {job['batch_size']} a step, {_listed(training)}"),
    ]
    bases, licence = ([], "") if from_scratch else ([facts.base], facts.licence)  # nothing is taken of a configuration
    front = _front(bases, licence, adapter=facts.adapter, tags=[job["objective"]], datasets=list(facts.datasets))
    title = f"{Path(facts.base).name or 'A model'} trained with {job['objective']}"
    return _card(front, title, rows, facts.name, facts.adapter, _metrics(logs))


def ensemble_card(
    name: str,
    models: tuple[str, str],
    directories: tuple[Path, Path],
    hashes: tuple[str, str],
    *,
    alpha: float,
    adapter: bool,
) -> str:
    """The card of a weight-space ensemble.

    Args:
        name: of its folder.
        models: the two models, as the user named them.
        directories, hashes: of each, the hashes of its weights.
        alpha: share of the first.
    """
    rows = [
        (f"{share:g} of", f"`{_said(model)}`, weights SHA-256 `{digest[:SHORT]}`")
        for share, model, digest in zip((alpha, round(1 - alpha, 10)), models, hashes, strict=True)
    ]
    licences = {licence_of(*one) for one in zip(models, directories, strict=True)}
    front = _front(models, licences.pop() if len(licences) == 1 else "", adapter=adapter, tags=["merge"], merged=True)
    return _card(front, f"Weight-space ensemble, alpha {alpha:g}", rows, name, adapter, "")


def licence_of(model: str, directory: Path) -> str:
    """The licence that a model's own card names, in its directory or on the hub; "" where there is none, or no card."""
    path = directory / CARD
    if on_hub(model):  # of which only what a model is loaded from was downloaded
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(model, CARD))
        except Exception as error:  # the hub client raises a dozen unrelated classes
            log.debug("no card of %s: %s", model, error)
            return ""
    try:
        found = FRONT.match(path.read_text(encoding="utf-8"))
        said = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    licence = said.get("license") if isinstance(said, dict) else None
    return licence if isinstance(licence, str) else ""


def write_card(place: Path, text: str) -> None:
    """Write a card whole, unless the one that is there is not ours. Raises UserError where it cannot be written."""
    folder = Folder(str(place))
    there = folder.read_if_there(CARD)
    if there is None or is_ours(there):
        folder.write(CARD, text.encode())
    else:
        log.info("%s in %s is not as this program wrote it, and is left as it is", CARD, place)


def is_ours(card: bytes) -> bool:
    """Whether a card is as this program wrote it, to the letter."""
    found = MARKED.fullmatch(card)
    return found is not None and sha256(found[1]).encode() == found[2]


def _card(
    front: Mapping[str, Any], title: str, rows: Sequence[tuple[str, str]], name: str, adapter: bool, metrics: str
) -> str:
    licence = front.get("license")
    said = f"`{licence}`, as the base's card says" if licence else "not known here: that of the base and of the data"
    table = "\n".join(f"| {key} | {value} |" for key, value in [*rows, ("licence", said)])
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    text = f"""---
{head}---

# {title}

Made with the reference implementation of *Sequence-level Large Language Model Training with Contrastive Preference
Optimization* ({PAPER}). Not TRL's CPO of arXiv 2401.08417.

| | |
|---|---|
{table}
{metrics}
## Use

```python
{_loading(name, adapter)}
```

## Versions

{_versions()}

"""
    return text + MARK.format(sha256(text.encode()))


def _front(
    bases: Sequence[str], licence: str, *, adapter: bool, tags: Sequence[str], datasets: Sequence[str] = (),
    merged: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The YAML in front, as the hub reads it; local paths name nothing there."""
    named = [base for base in dict.fromkeys(bases) if base and on_hub(base)]
    relation = "merge" if merged else "adapter" if adapter else "finetune"
    return {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": named[0] if len(named) == 1 else named, "base_model_relation": relation} if named else {}),
        **({"datasets": list(datasets)} if datasets else {}),
        **({"license": licence} if licence else {}),
        "tags": ["contrastive-preference-optimization", *tags, *(["lora"] if adapter else [])],
    }


def _loading(name: str, adapter: bool) -> str:
    if adapter:
        return f"""from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = model.merge_and_unload()  # one model, as `python -m evaluation.run` takes it"""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def _metrics(logs: Sequence[Mapping[str, Any]]) -> str:
    """The last logged values of training and of held-out groups, as a table."""
    train = next((entry for entry in reversed(logs) if "loss" in entry), {})
    held_out = next((entry for entry in reversed(logs) if "eval_loss" in entry), {})
    watched = {key.removeprefix("eval_"): value for key, value in held_out.items() if key.startswith("eval_")}
    names = [key for key in dict.fromkeys([*train, *watched]) if not NO_METRIC.fullmatch(key)]
    if not names:
        return ""
    sides = {f"training, step {train['step']:,}": train} if train else {}
    sides |= {f"held-out, step {held_out['step']:,}": watched} if watched else {}
    lines = [f"| {name} | " + " | ".join(_number(side.get(name)) for side in sides.values()) + " |" for name in names]
    head = f"| | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}"
    return "\n## Metrics\n\n" + "\n".join([head, *lines]) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _negative_set(path: str) -> str:
    """A negative set in a line, by the hash of its manifest."""
    from data.manifest import MANIFEST, read_manifest

    folder = Folder(path)
    manifest = read_manifest(folder)
    made = ", ".join(f"{settings['count']} {name}" for name, settings in manifest.job["strategies"].items())
    return (
        f"negative set `{_said(path)}`, manifest SHA-256 `{sha256(folder.read(MANIFEST))[:SHORT]}`, "
        f"{manifest.counts['rows_written']:,} groups of {made}, of the reference with weights SHA-256 "
        f"`{manifest.job['model']['weights_sha256'][:SHORT]}`"
    )


def _hub_ids(paths: Sequence[str]) -> list[str]:
    """Names of the data sets of the hub among some paths."""
    named = [path.removeprefix(HUB_DATA) for path in paths if path.startswith(HUB_DATA)]
    return ["/".join(path.split("/")[:2]) for path in named]


def _flat_options(options: Any) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return flat({k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()})  # type: ignore[arg-type]  # an instance


def _said(name: str) -> str:
    """A path or a name without the home directory, in a table's cell."""
    return without_secrets(name).replace("|", "\\|").replace("`", "'")


def _listed(values: Mapping[str, Any]) -> str:
    known = {key: getattr(value, "value", value) for key, value in values.items() if value is not None}  # of an enum
    return ", ".join(f"{key} {value}" for key, value in known.items()).replace("|", "\\|") or "none"


def _versions() -> str:
    from data.command.version import version_line

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{version_line()}; {', '.join(found)}."
