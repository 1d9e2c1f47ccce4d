"""Jinja in a sandbox, within bounds: a template is a program, and one that does not end would stop a job for ever."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.sources.template_bounds import MOST_CHARACTERS, MOST_STEPS, Endless

COUNTED = "counted by us"  # a filter that no template can name


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts rounds of loops and calls, and what is written; the same row always gives the same text."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._steps = 0
        self.globals["range"] = self._range
        self.filters[COUNTED] = self._counted
        del self.globals["lipsum"], self.filters["random"]

    def bounded(self, tree: nodes.Template) -> Template:
        """The template of a tree that was parsed here, whose loops are counted from now on."""
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, lineno=loop.lineno)
        return self.from_string(tree)

    def write(self, template: Template, values: Mapping[str, Any]) -> str:
        """What a template of `bounded` writes. Raises Endless beyond the bounds, and whatever the template raises."""
        self._steps, length = 0, 0
        written = []
        for piece in template.generate(values):
            written.append(piece)
            length += len(piece)
            _require(length)
        return "".join(written)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Called by a template for each of its calls."""
        self._step()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Called by a template for products and powers."""
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if isinstance(some, str | list | tuple) and isinstance(times, int):
                    _require(len(some) * times)
        elif isinstance(left, int) and isinstance(right, int):
            _require(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._step(max(0, (numbers.stop - numbers.start) // numbers.step))
        return numbers

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _step(self, number: int = 1) -> None:
        self._steps += number
        if self._steps > MOST_STEPS:
            raise Endless(f"takes more than {MOST_STEPS:,} rounds of loops and calls")


def _require(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise Endless(f"writes more than {MOST_CHARACTERS:,} characters")
