"""Stage 1: a Ray + vLLM job that makes a negative set once, for any number of training runs.

For programs: `generate`.
"""

from typing import TYPE_CHECKING, Any

from cpo_rooms import require_ours

if TYPE_CHECKING:
    from data.shards import NegativeSet

require_ours("data", "trainer")

__all__ = ["generate"]


def generate(**options: Any) -> "NegativeSet":
    """Make a negative set, or finish one that was interrupted, as `python -m negatives_gen` does.

    Without a running Ray cluster it starts Ray on this machine and ends it again; vLLM is started only where a chosen
    strategy samples (an, rn). A script calls it below `if __name__ == "__main__":`, since vLLM starts processes.

    Example:
        `generate(model="runs/reference", dataset="facts", out="runs/negatives", strategies="bn=3,tn=2")`

    Args:
        options: those of the command under their names (`negatives_gen.config.GenerateConfig`, `python -m
            negatives_gen --help`): `model`, `dataset` and `out` must be given. Lists may be written as lists or with
            commas; options with a dot are mappings, `engine={"max_model_len": 512}`.

    Returns:
        The finished set, opened.

    Raises:
        UserError: an unknown option or a wrong value, unusable model or data, or an `out` that holds another job.
    """
    from data.command.options import make_config, resolve_path
    from data.shards import NegativeSet
    from negatives_gen.config import GenerateConfig
    from negatives_gen.job.job import generate as run

    config = make_config(GenerateConfig, **options)
    run(config)
    return NegativeSet(resolve_path(config.out))
