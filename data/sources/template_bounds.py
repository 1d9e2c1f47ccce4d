"""What a Jinja template may do for one row: more than any prompt needs, and little enough to end soon."""

MOST_STEPS = 1_000_000  # rounds of loops, calls, numbers of a range
MOST_CHARACTERS = 100_000_000


class Endless(Exception):
    """A template goes beyond its bounds; the message says which one does what."""
