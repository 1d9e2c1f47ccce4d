"""Numbers as people read them: counts with their noun, durations in units that fit."""

import math

MINUTE, HOUR, DAY = 60, 3600, 86400
# A duration is in the largest unit of which there are so many; else "1 min" would stand for anything up to 90 s.
LEAST_OF_UNIT = 2


def counted(number: float, noun: str, several: str = "") -> str:
    """A count with its noun: "1 shard", "1,240 groups", "0.5 GPUs".

    Args:
        noun: of one.
        several: of any other number; "": the noun with an s.
    """
    said = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return f"{said} {noun if number == 1 else several or noun + 's'}"


def is_or_are(number: int) -> str:
    """The verb behind a count."""
    return "is" if number == 1 else "are"


def duration(seconds: float) -> str:
    """A time in seconds as people say it: "4 ms", "0.3 s", "95 s", "2 min", "90 min", "2.5 h", "3.1 days"."""
    if not math.isfinite(seconds):
        return "for ever" if seconds > 0 else "no time that is known"
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.2g} ms" if seconds >= 0.001 else "under 1 ms"
    if seconds < LEAST_OF_UNIT * MINUTE:
        digits = f"{seconds:.2g}" if seconds < 1 else f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}"
        return f"{digits.removesuffix('.0')} s"
    if seconds < LEAST_OF_UNIT * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    unit, name = (HOUR, "h") if seconds < LEAST_OF_UNIT * DAY else (DAY, "days")
    return f"{seconds / unit:.1f}".removesuffix(".0") + f" {name}"


def whole_duration(seconds: float) -> str:
    """A time of which nobody needs to know parts of a second, such as that of a whole job."""
    return duration(seconds) if seconds >= 1 else "under a second"


def size(number: float) -> str:
    """Bytes as people read them: "514 bytes", "28.7 KiB", "6.0 GiB"."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return counted(round(number), "byte")
