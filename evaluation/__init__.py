"""Stage 3: compares checkpoints on held-out prompts and held-out groups.

For programs: `evaluate`.
"""

from typing import TYPE_CHECKING, Any

from cpo_rooms import require_ours

if TYPE_CHECKING:
    from evaluation.measured import Measurements

require_ours("data", "trainer", "negatives_gen")

__all__ = ["evaluate"]


def evaluate(**options: Any) -> "Measurements":
    """Compare checkpoints and write the report, as `python -m evaluation.run` does.

    vLLM is started only if a metric is of answers: not for `metrics=["truth", "ranking"]`. What was generated, scored
    and judged is kept, so that the same call goes on where it was interrupted, and another one uses it.

    Example:
        `evaluate(model=["cpo=runs/cpo", "mle=runs/mle"], dataset="facts", out="runs/evaluation").to_pandas()`

    Args:
        options: those of the command under their names (`evaluation.config.EvaluateConfig`, `python -m evaluation.run
            --help`): `model`, `dataset` and `out` must be given. Options with a dot are mappings,
            `judge={"model": "X"}`.

    Returns:
        The report's measurements, a list of dicts with a `to_pandas`.

    Raises:
        UserError: an unknown option or a wrong value, unusable model, data, judge or negative set, or an `out` that
            holds something else.
    """
    from data.command.options import make_config, resolve_path
    from evaluation.config import EvaluateConfig
    from evaluation.measured import Measurements
    from evaluation.report import read_report
    from evaluation.run import evaluate as run

    config = make_config(EvaluateConfig, **options)
    config.check()
    _outside_of_event_loops(run, config)
    return Measurements.of(read_report(resolve_path(config.out)).measurements)


def _outside_of_event_loops(function: Any, *arguments: Any) -> Any:
    """What a function returns; called in a thread of its own where this one runs an event loop, as a notebook's does.

    Judges are asked in a loop of their own, which cannot run inside of another.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*arguments)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()
