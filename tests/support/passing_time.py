"""Time that passes when told, for what watches a job."""

import pytest

from negatives_gen.job.attempts import Stall


class ClockStub:
    """Seconds that pass when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr("negatives_gen.job.attempts.time.monotonic", lambda: self.now)

    def pass_by(self, stall: Stall, seconds: float) -> None:
        """Let seconds pass, then have the job looked at."""
        self.now += seconds
        stall.check()
