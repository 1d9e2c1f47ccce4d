"""The dataset card that is written with each set."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa

from data.command.entries import flat, undecided
from data.command.errors import UserError
from data.counts import least_of
from data.manifest import REJECTS, Manifest
from data.schema import group_schema
from negatives_gen.signals import models_of
from negatives_gen.strategies import STRATEGIES

CARD = "README.md"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

TEMPLATE = """---
pretty_name: Negative set for Contrastive Preference Optimization
license: other
size_categories:
- {size}
tags:
- contrastive-preference-optimization
- synthetic-negatives
- preference
configs:
- config_name: default
  data_files:
  - split: train
    path: shard-*.parquet
---

# Negative set for Contrastive Preference Optimization

Groups of one prefix, its ground truth and K-1 synthetic negatives, with the reference model's log-probability of each
continuation and its similarity to the ground truth, for *Sequence-level Large Language Model Training with Contrastive
Preference Optimization* ([arXiv 2502.16433](https://arxiv.org/abs/2502.16433)). Not TRL's CPO of arXiv 2401.08417.
The licence is that of the data and the model it was made from.

| | |
|---|---|
| reference model | `{model}`, weights SHA-256 `{weights}` |
{sampler}| data | `{data}`, task `{task}`, split `{split}` |
| rows | {rows_read} read, {rows_written} groups, {rows_rejected} rejected (`{rejects}` says why) |
| ranking signals | {signals} |
| seed | {seed} |

| strategy | per group | how | settings |
|---|---|---|---|
{strategies}

## Use

```python
import datasets

groups = datasets.load_dataset("parquet", data_files="shard-*.parquet", split="train")
```

```bash
python -m trainer.run --shards DIR --model {model} --objective cpo --output_dir OUT
```

Columns: {columns}. `manifest.json` holds checksums, settings, package versions and counts.
"""
# What is said of a column beside its name.
MEANINGS = {
    "query": "what a person asked",
    "in_support": "whether the sampler could have said the ground truth",
    "split": "half of the data source: train on `train` only",
    "messages": "of a chat",
    "sampler_logp": "under what was sampled from",
}


def _columns(fields: Iterable[pa.Field]) -> str:
    """Columns by name, with what there is to say of them, and those of which the items of a list are made."""
    return ", ".join(f"`{field.name}`" + _parts(field) for field in fields)


def _parts(field: pa.Field) -> str:
    inner = getattr(field.type, "value_type", None)
    parts = f"list of {_columns(inner)}" if inner is not None and pa.types.is_struct(inner) else ""
    said = ": ".join(filter(None, (MEANINGS.get(field.name), parts)))
    return f" ({said})" if said else ""


def _sampler_line(sampler: dict[str, Any] | None) -> str:
    """A row of what samples, where it is not the reference."""
    return f"| sampler | `{sampler['name']}`, weights SHA-256 `{sampler['weights_sha256'][:16]}` |\n" if sampler else ""


def _signal(manifest: Manifest, signal: str) -> str:
    known = [_cell({option: f"`{model}`"}) for option, model in models_of(signal, manifest.job).items()]
    if having := manifest.only_of.get(signal):
        known.append(f"null but for {', '.join(f'`{name}`' for name in having)}")
    return f"`{signal}`" + (f" ({'; '.join(known)})" if known else "")


def card(manifest: Manifest) -> str:
    """The card of a set, as the hub reads it."""
    job, counts = manifest.job, manifest.counts
    lines = []
    for name, settings in job["strategies"].items():
        strategy = STRATEGIES.load(name)
        passed_over = {"count", "least", *undecided(strategy.Options)}
        others = {key: value for key, value in flat(settings).items() if key not in passed_over}
        least, most = least_of(settings), settings["count"]
        number = str(most) if least == most else f"{least} to {most}"
        lines.append(f"| `{name}` | {number} | {strategy.summary} | {_cell(others)} |")
    return TEMPLATE.format(
        size=next((label for bound, label in SIZES if counts["rows_written"] < bound), "1M<n<10M"),
        model=job["model"]["name"],
        weights=job["model"]["weights_sha256"][:16],
        data=job["data"]["name"],
        task=job["data"]["task"],
        split=job["data"]["split"],
        rejects=REJECTS,
        signals=", ".join(map(partial(_signal, manifest), manifest.signals)),
        seed=job["seed"],
        strategies="\n".join(lines),
        sampler=_sampler_line(job.get("sampler")),
        columns=_columns(group_schema(manifest.signals)),
        **{key: counts[key] for key in ("rows_read", "rows_written", "rows_rejected")},
    )


def require_disk(path: str) -> None:
    """Raise UserError if a set there could not be pushed to the hub, whose client reads local directories."""
    if "://" in path:
        raise UserError(f"only a set on a disk can be pushed to the hub; copy '{path}' to one and push that.")


def _cell(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()).replace("|", "\\|")
