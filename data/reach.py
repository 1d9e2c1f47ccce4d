"""Why a negative set does not say of every ground truth whether the sampler could have said it (`in_support`)."""

from typing import NamedTuple

from data.shards import NegativeSet

FEW = 0.1  # of the groups: where fewer are in reach, those alone are too few to learn from


class Unknown(NamedTuple):
    """The cause why `in_support` is not known, and the remedy, what would tell it: "" where nothing does."""

    cause: str
    remedy: str


def why_unknown(negatives: NegativeSet) -> Unknown:
    """What the manifest of a set tells that lacks `in_support` in all groups or in some."""
    job, version = negatives.manifest.job, negatives.manifest.schema_version
    own = [name for name, settings in job["strategies"].items() if "origin" in settings]  # one from outside may sample
    samples = [name for name, settings in job["strategies"].items() if "top_k" in settings]
    if not own and not samples:
        return Unknown("none of its strategies samples", "add sampled negatives with `python -m negatives_gen extend`")
    if not negatives.knows_support:
        remedy = "" if version == 2 else "`python -m negatives_gen extend` the set, which finds it out"
        return Unknown(f"sets of schema version {version} do not say it", remedy)
    if "sampler" in job:
        return Unknown("of --sampler no ranks are computed", "generate with --top_k 0, where lengths alone decide")
    return Unknown(f"its strategies ({', '.join(own or samples)}) do not say it", "")
