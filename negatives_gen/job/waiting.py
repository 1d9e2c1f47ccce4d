"""Which stages have not begun in a job that found GPUs held by others: no stall, and said every few minutes."""

import logging
import re
import time
from collections.abc import Callable, Iterable

from negatives_gen.job.resources import Resources

log = logging.getLogger(__name__)

# That a stage has not begun yet is said so often.
SAY_SECONDS = 300.0


class GpuWait:
    """The stages with GPUs of which no worker has begun, if the cluster has fewer free ones than the job asks for.

    Where fewer are free, no number says which stage goes without: Ray places actors in its own order, and says of the
    whole cluster alone what is free. So each stage counts as waiting until a worker of it is seen.

    Args:
        total: GPUs of the cluster.
        free: says how many of them are free now.
        shards: that are to be made.
    """

    def __init__(self, resources: Resources, total: int, free: Callable[[], float], shards: int):
        self.resources, self.total, self.free = resources, total, free
        lack = resources.lack_of_gpus(free(), total, shards) if total else ""
        self.stages = resources.gpu_stages if lack else []
        self.said = time.monotonic()
        if lack:
            log.warning("%s", lack)

    def look(self, marks: Iterable[re.Match[str]]) -> list[str]:
        """The stages that still wait, by the marks that workers leave (`attempts.MARK`)."""
        # An actor whose GPUs are held by vLLM's workers comes up without them, and waits while it loads.
        begun = {m["stage"] for m in marks if m["what"].isdecimal() or self.resources.holds_its_gpus(m["stage"])}
        self.stages = [stage for stage in self.stages if stage not in begun]
        if self.stages and time.monotonic() - self.said >= SAY_SECONDS:
            self.said = time.monotonic()
            needs = self.resources.to_begin(self.stages)
            log.warning("not begun yet: %s; %g of %d GPUs are free now", needs, self.free(), self.total)
        return self.stages
