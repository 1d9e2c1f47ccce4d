"""Models and other things that take memory: loaded when they are first needed, dropped when they no longer are."""

import gc
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OnDemand(Generic[T]):
    """A thing that is loaded when it is first asked for and dropped at the end of a `with`; it can be loaded again.

    Args:
        load: gives the thing. Where it takes arguments, the thing of the last arguments is held, never two at a time.
    """

    def __init__(self, load: Callable[..., T]):
        self._load = load
        self._held: tuple[tuple[object, ...], T] | None = None

    def __call__(self, *arguments: object) -> T:
        """The thing, loaded if need be."""
        if self._held is not None and self._held[0] != arguments:
            self.drop()
        if self._held is None:
            self._held = arguments, self._load(*arguments)
        return self._held[1]

    @property
    def loaded(self) -> bool:
        """Whether the thing is loaded."""
        return self._held is not None

    def drop(self) -> None:
        """Free the memory that the thing takes."""
        if self.loaded:
            self._held = None
            gc.collect()  # the next model needs the room

    def __enter__(self) -> "OnDemand[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()
