"""Models that are loaded when they are needed, one at a time, and dropped."""

import weakref

from evaluation.on_demand import OnDemand


class Thing:
    """Something that can be seen to go."""

    def __init__(self, name: str = ""):
        self.name = name


def test_a_thing_is_loaded_once_and_dropped_at_the_end() -> None:
    loads: list[str] = []

    def load(name: str = "") -> Thing:
        loads.append(name)
        return Thing(name)

    with OnDemand(load) as thing:
        assert not thing.loaded
        assert loads == []
        assert thing() is thing()
        assert loads == [""]
        there = weakref.ref(thing())
        # Of other arguments another one, which takes its place.
        assert thing("b").name == "b"
        assert there() is None
        assert thing("b") is thing("b")
        there = weakref.ref(thing("b"))
    assert not thing.loaded
    assert there() is None
    assert thing("b").name == "b"  # it can be loaded again
    assert loads == ["", "b", "b"]
