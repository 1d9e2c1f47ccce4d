"""How a row becomes an example's parts: a task, and what `--columns` and `--prompt_template` say beside it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data.command.errors import UserError
from data.command.wording import counted
from data.sources.encode import Problem
from data.sources.prompt_templates import PromptTemplate, Unfilled, read_template
from data.sources.row_paths import NOWHERE, Path, parse_columns
from data.sources.shapes import speaker
from data.sources.tasks import NOT_ONE_ANSWER, TASKS, Task, describe_task, task_of

# What every task with a place for the response can read beside it: a row's other responses, and how good each is.
CANDIDATES, SCORES = "candidates", "scores"
LARGEST_SCORE = 3.4e38  # a set keeps float32
NO_NUMBER = "score is no number"
OTHER_PROMPT = "the prompt before it is not the row's"


class Parts(NamedTuple):
    """What is read in a row; see `data.sources.examples.Example`."""

    prompt: Any
    response: Any
    problem: Problem | None
    query: str | None = None
    besides: list[dict[str, Any]] | None = None
    alternatives: list[Any] | None = None
    scores: list[float] | None = None
    unusable: list[str] | None = None


class Listed(NamedTuple):
    """A response that a row lists besides, and its score, higher is better.

    Attributes:
        score: None where none is read.
        problem: why it cannot be used; "" if it can.
    """

    said: Any
    score: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class RowReader:
    """Reads rows for a task.

    Attributes:
        name: of the task.
        places: name that the task reads, CANDIDATES or SCORES -> where it lies in this data; others under their name.
        template: writes the prompt in the task's stead.
    """

    name: str
    task: Task
    places: Mapping[str, Path]
    template: PromptTemplate | None = None

    @classmethod
    def of(cls, task: str, columns: Sequence[str] = (), prompt_template: str | None = None) -> "RowReader":
        """The reader of some options.

        Raises:
            UserError: an unknown task or name, a template that cannot be used, or what the task has no place for.
        """
        how = task_of(task)
        beside = (how.response, CANDIDATES, SCORES) if how.response else ()
        known = list(dict.fromkeys([*how.columns, *how.optional, *beside]))
        for name in (item.partition("=")[0].strip() for item in columns):
            if name in (CANDIDATES, SCORES) and name not in known:
                others = ", ".join(other for other, has in TASKS.items() if has.response)
                raise UserError(
                    f"--columns {name}=...: task '{task}' reads no '{name}', since its rows have no place for a "
                    f"response alone. Leave it out, or choose a --task that has: {others}."
                )
        places = parse_columns(columns, known, (SCORES,), task)
        if SCORES in places and CANDIDATES not in places:
            raise UserError(f"--columns {SCORES}=... needs {CANDIDATES}=... beside it: what the scores are of.")
        template = None if prompt_template is None else read_template(prompt_template)
        if template is not None and how.prompt is None:
            raise UserError(
                f"task '{task}' takes no --prompt_template: its prompts are not written from columns. Leave it out, or "
                "choose another --task."
            )
        return cls(task, how, places, template)

    @property
    def chooses_truth(self) -> bool:
        """Whether the best-scored candidate is the ground truth of a row that names none.

        Not where `--columns` says where the response lies: there a row without one lacks it.
        """
        return SCORES in self.places and self.task.response not in self.places

    @property
    def lists(self) -> list[str]:
        """Which of CANDIDATES and SCORES are read."""
        return [name for name in (CANDIDATES, SCORES) if name in self.places]

    @property
    def own_response(self) -> str | None:
        """The task's response column if the data may have it or not: with it no ground truth is chosen."""
        return self.task.response if self.chooses_truth and self._has_column else None

    @property
    def needed(self) -> list[Path]:
        """The places that some row must have, or the data are of another kind."""
        spared = {self.task.prompt if self.template else None, self.task.response if self.chooses_truth else None}
        names = [name for name in (*self.task.columns, *self._response_beside) if name not in spared]
        of_template = [] if self.template is None else self.template.places
        others = [place for place in of_template if place.steps[0] not in self.places]
        return list(dict.fromkeys([*map(self._place, names), *others, *map(self._place, self.lists)]))

    @property
    def optional(self) -> list[Path]:
        """The places that are read if they are there."""
        needed = self.needed
        found = map(self._place, (*self.task.columns, *self._response_beside, *self.task.optional))
        return [place for place in dict.fromkeys(found) if place not in needed]

    def describe(self) -> dict[str, Any]:
        """What a manifest or a report says of it: what decides the examples, and nothing that was not asked for."""
        found: dict[str, Any] = describe_task(self.name)
        if self.places:
            found["columns"] = {name: place.text for name, place in self.places.items()}
        if self.template is not None:
            found["prompt_template"] = {"syntax": self.template.syntax, "source": self.template.text}
        if self.chooses_truth:
            found["ground_truth"] = "the best-scored candidate where a row names none"
        return found

    def read(self, row: Mapping[str, Any]) -> Parts:
        """What a row says, whatever it holds."""
        named = {**row, **{name: None if (v := p.find(row)) is NOWHERE else v for name, p in self.places.items()}}
        if self.task.response and not self._has_column:
            named.pop(self.task.response, None)  # a column that only happens to be called so
        prompt: Any = None
        own = named.get(self.task.prompt) if self.task.prompt else None
        if self.template is not None:
            assert self.task.prompt is not None  # see `of`
            prompt = self.template.fill(named)
            named[self.task.prompt] = prompt if isinstance(prompt, str) else ""
        others, problem = self._candidates(named)
        if self.task.response in self.places and _says_something(said := named[str(self.task.response)]):
            self._put_response(named, said)
        if SCORES in self.places and not self._names_truth(named):
            if self.chooses_truth and self.own_response not in row:
                others, problem = self._with_truth(named, prompt, others, problem)
            else:
                where = self._place(str(self.task.response)).text
                problem = problem or ("no response", f"'{where}' is null or blank; no candidate takes its place")
        of_task, response = self.task.read(named)
        prompt = of_task if self.template is None else prompt
        problem = prompt.problem if isinstance(prompt, Unfilled) else problem or self.task.problem(prompt, response)
        if problem is not None:
            return Parts((own or "") if isinstance(prompt, Unfilled) else prompt, response, problem)
        besides = self._not_written(self.task.besides(named))
        if self.template is None:
            query = self.task.query(named)
        else:  # what a person asked has no template; where no column says it, all of the prompt was asked
            asked = isinstance(own, str) and own.strip()
            query = self.task.query({**named, str(self.task.prompt): own}) if asked else str(prompt)
        if CANDIDATES not in self.places:
            return Parts(prompt, response, None, query, besides)
        others = [self._read_other(named, prompt, other) for other in others]
        usable = [other for other in others if not other.problem]
        scores = [other.score for other in usable if other.score is not None]
        unusable = [other.problem for other in others if other.problem]
        said = [other.said for other in usable]
        return Parts(prompt, response, None, query, besides, said, scores or None, unusable or None)

    def _not_written(self, besides: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """What a row says beside its texts but for what the template writes into the prompt."""
        if self.template is None or besides is None:
            return besides
        written = {place.steps[0] for place in self.template.places}
        kept = [{name: said for name, said in fields.items() if name not in written} for fields in besides]
        return kept if any(kept) else None

    @property
    def _response_beside(self) -> list[str]:
        """The response's name, where `--columns` alone says that rows have it apart from what the task reads."""
        name = self.task.response
        return [name] if name and name in self.places and name not in self.task.columns else []

    @property
    def _has_column(self) -> bool:
        """Whether the response lies in a column of its own."""
        return self.task.response in (*self.task.columns, *self.task.optional, *self.places)

    def _place(self, name: str) -> Path:
        return self.places.get(name) or Path(name, (name,))

    def _candidates(self, row: Mapping[str, Any]) -> tuple[list[Listed], Problem | None]:
        """The row's candidates as they stand there, those that say nothing left out; or why none can be read."""
        found = row.get(CANDIDATES) if CANDIDATES in self.places else None
        if found is None:
            return [], None
        if isinstance(found, str | Mapping) or _is_conversation(found):
            found = [found]
        if not isinstance(found, list):
            return [], ("candidates are no list", f"they are {type(found).__name__}")
        if SCORES not in self.places:
            return [Listed(said) for said in found if _says_something(said)], None
        scores = row.get(SCORES)
        if isinstance(scores, int | float | str):
            scores = [scores]
        if not isinstance(scores, list) or len(scores) != len(found):
            has = len(scores) if isinstance(scores, list) else f"{type(scores).__name__}, no list"
            return [], ("scores do not match candidates", f"{counted(len(found), 'candidate')}, scores: {has}")
        sign, others = self.places[SCORES].sign, []
        for said, score in zip(found, scores, strict=True):
            if _says_something(said):
                number = _number(score)
                others.append(Listed(said, problem=NO_NUMBER) if number is None else Listed(said, sign * number))
        return others, None

    def _with_truth(
        self, named: dict[str, Any], written: Any, others: list[Listed], problem: Problem | None
    ) -> tuple[list[Listed], Problem | None]:
        """Put the best-scored candidate that the task takes, the first of several, in the place of the response.

        Where it takes none, the best-scored one is put there, by which the row is rejected.

        Args:
            written: the prompt, if a template writes it.

        Returns:
            The other candidates, and why the row cannot be used.
        """
        scored = sorted((-other.score, place) for place, other in enumerate(others) if other.score is not None)
        if not scored:
            of_all = f"of none of the {counted(len(others), 'candidate')}"
            return others, (NO_NUMBER, of_all) if others else problem
        of_task, _ = self.task.read({**named, str(self.task.response): None})
        prompt = of_task if self.template is None else written
        places = [place for _, place in scored]
        fits = (place for place in places if not self._read_other(named, prompt, others[place]).problem)
        place = next(fits, places[0])
        self._put_response(named, others[place].said)
        return others[:place] + others[place + 1 :], problem

    def _names_truth(self, named: Mapping[str, Any]) -> bool:
        """Whether the row says a response: in its column or, of a conversation, as the assistant's last message."""
        if self._has_column:
            return _says_something(named.get(str(self.task.response)))
        _, response = self.task.read(named)
        return isinstance(response, list) and [speaker(turn) for turn in response] == ["assistant"]

    def _put_response(self, named: dict[str, Any], said: Any) -> None:
        """Put what is said in the place of the row's response."""
        prompt, _ = self.task.read({**named, str(self.task.response): None})
        named[str(self.task.response)] = self._as_response(said, prompt, named)

    def _as_response(self, said: Any, prompt: Any, named: Mapping[str, Any]) -> Any:
        """What is said as the task reads a response: in a chat a list of messages that holds no prompt.

        A chat's may be given as a text, as a message, or as a conversation that begins with the prompt, perhaps
        without the system's message, which ShareGPT has in a column of its own.
        """
        if not isinstance(prompt, list):
            return said
        if isinstance(said, str):
            return [{"role": "assistant", "content": said}]
        if not isinstance(said, list):
            return [said] if isinstance(said, Mapping) else said
        _, messages = self.task.read({**named, str(self.task.response): said})
        asked = prompt[1:] if prompt and speaker(prompt[0]) == "system" else prompt
        repeated = next((len(start) for start in (prompt, asked) if messages[: len(start)] == start), 0)
        return said[repeated:]

    def _read_other(self, named: Mapping[str, Any], prompt: Any, other: Listed) -> Listed:
        """A candidate as the task reads a response, or with what is wrong with it."""
        if other.problem:
            return other
        said = self._as_response(other.said, prompt, named)
        _, response = self.task.read({**named, str(self.task.response): said})
        problem = self.task.problem(prompt, response)
        if problem and problem[0] == NOT_ONE_ANSWER and _answers_a_prompt(response):
            return other._replace(problem=OTHER_PROMPT)  # its own one was not taken off: white space differs, or more
        return other._replace(said=response, problem=problem[0] if problem else "")


def _is_conversation(value: Any) -> bool:
    """Whether a list is one candidate, messages that begin with a prompt, and not several, one message each."""
    return isinstance(value, list) and any(speaker(turn) not in (None, "assistant") for turn in value)


def _answers_a_prompt(messages: Any) -> bool:
    """Whether a list of messages is a conversation in which the assistant has the last word."""
    return _is_conversation(messages) and speaker(messages[-1]) == "assistant"


def _says_something(said: Any) -> bool:
    """Whether a candidate is neither null nor blank nor an empty list; a number says something, if no response."""
    return bool(said.strip()) if isinstance(said, str) else said is not None and said not in ([], {})


def _number(score: Any) -> float | None:
    """A score, or a text that writes one, as a finite number; None if it is none."""
    if isinstance(score, bool) or not isinstance(score, int | float | str):
        return None
    try:
        number = float(score)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < LARGEST_SCORE else None
