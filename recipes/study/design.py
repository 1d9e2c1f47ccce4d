"""What the YAML of a study says: parts of the data, references, negative sets, rows, and the hypotheses they serve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from data.command.errors import UserError, did_you_mean
from data.command.options import read_yaml

T = TypeVar("T")
TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True)
class Data:
    """The rows of a study and the parts that they are cut into, which have none in common.

    Attributes:
        dataset, task: as every command takes them.
        first_line: a row's text is its first line alone (an article's first paragraph).
        shortest, longest: characters of a row, all columns that the task reads together; other rows are left out.
        parts: name -> number of rows; 0, last: all that are left.
        evaluated_as: the data set that evaluations name, their part being its --test_dataset; "": the part itself.
    """

    dataset: str
    task: str
    parts: Mapping[str, int]
    first_line: bool = False
    shortest: int = 0
    longest: int = 1 << 60
    evaluated_as: str = ""


@dataclass(frozen=True)
class Reference:
    """A model that is trained by next-token prediction before all rows.

    Attributes:
        part: of the data, that it is trained on.
        model: what it starts from; of `shape` the directory whose tokenizer and config.json it gets.
        options: of trainer.run.
        shape: values of config.json that are other than there: then it starts from random weights.
        blank: options of data.blank, in the place of `model`: then it starts from random weights too.
    """

    name: str
    part: str
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    blank: Mapping[str, Any] = field(default_factory=dict)

    @property
    def from_scratch(self) -> bool:
        """Whether it starts from random weights."""
        return bool(self.shape or self.blank)


@dataclass(frozen=True)
class NegativeSet:
    """A negative set of one reference.

    Attributes:
        reference: a reference, or a row: then there is a set for each seed, from that row's model.
        part: of the data, whose groups it holds.
        earlier: a set whose candidates strategy `earlier` takes.
        options: of negatives_gen.
    """

    name: str
    reference: str
    part: str
    earlier: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the table: a model trained on a set, a reference as it is, or an ensemble of two rows.

    Attributes:
        set: negative set that it is trained on, from the set's reference.
        objective, options: of trainer.run; options come after the study's own.
        rates: learning rates that are tried; none: the study's.
        rate_of: a row whose chosen rate is taken, so that none is tried.
        reference: the row is that reference; nothing else is said then.
        mle, cpo, alpha: the row is this ensemble of two rows; nothing else is said then.
    """

    name: str
    set: str = ""
    objective: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[float] = ()
    rate_of: str = ""
    reference: str = ""
    mle: str = ""
    cpo: str = ""
    alpha: float | None = None

    @property
    def trained(self) -> bool:
        """Whether it has a training run of its own."""
        return bool(self.objective)


@dataclass(frozen=True)
class Hypothesis:
    """The rows that a hypothesis of docs/results/hypotheses.md needs, and what they are compared with.

    Attributes:
        rows: each is compared with each of `against`, of the same seed.
        pairs: further comparisons, row and what it is compared with.
        measures: keys of a report that decide it, e.g. "reverse_kl".
        changes: pairs of such comparisons, [[a, b], [c, d]]: what is asked is how much a - b and c - d differ.
    """

    name: str
    measures: Sequence[str]
    rows: Sequence[str] = ()
    against: Sequence[str] = ()
    pairs: Sequence[Sequence[str]] = ()
    changes: Sequence[Sequence[Sequence[str]]] = ()

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Row and what it is compared with, each once."""
        pairs = [(a, b) for a, b in self.pairs] + [(a, b) for change in self.changes for a, b in change]
        return list(dict.fromkeys([(row, other) for row in self.rows for other in self.against] + pairs))


@dataclass(frozen=True)
class Study:
    """A task's study; see `recipes/study/*.yaml`.

    Attributes:
        about: a sentence for the head of the table.
        training: options of trainer.run for every row, steps and batch among them.
        rates: that each row tries, where it names none; at least three.
        seeds: of the rows; rates are tried with the first.
        baseline: the row that all others are compared with.
        choose_by: measure -> weight: the rate with the largest weighted sum on the validation prompts is taken.
        choose_metrics, metrics: those of evaluation.run on the validation prompts and on the test prompts.
        second_model: a reference, or a directory.
        held_out: the set whose groups are ranked; "" for none.
        evaluation: options of evaluation.run.
        of_tests: further ones, of evaluations on the test prompts.
    """

    name: str
    about: str
    data: Data
    references: Mapping[str, Reference]
    sets: Mapping[str, NegativeSet]
    rows: Mapping[str, Row]
    hypotheses: Mapping[str, Hypothesis]
    training: Mapping[str, Any]
    rates: Sequence[float]
    seeds: Sequence[int]
    baseline: str
    choose_by: Mapping[str, float]
    choose_metrics: Sequence[str]
    metrics: Sequence[str]
    evaluation: Mapping[str, Any]
    second_model: str = ""
    held_out: str = ""
    of_tests: Mapping[str, Any] = field(default_factory=dict)

    def rates_of(self, row: Row) -> list[float]:
        """The learning rates that a row tries, rising."""
        return sorted(row.rates or self.rates)

    def tuned(self, row: str) -> str:
        """The row whose trials decide the rate of a row: itself, or the one that it takes its rate of."""
        return self.rows[row].rate_of or row

    def comparisons(self, only: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Row and what it is compared with, each once; the baseline by itself comes first.

        Args:
            only: hypotheses and rows; none: all.

        Raises:
            UserError: there is no such hypothesis or row.
        """
        wanted: list[tuple[str, str]] = [(self.baseline, self.baseline)]
        for name in only or [*self.rows, *self.hypotheses]:
            if name in self.hypotheses:
                pairs = self.hypotheses[name].comparisons
                wanted += [(row, self.baseline) for pair in pairs for row in pair] + pairs
            elif name in self.rows:
                wanted.append((name, self.baseline))
            else:
                known = [*self.hypotheses, *self.rows]
                raise UserError(f"study '{self.name}' has no hypothesis or row '{name}'.{did_you_mean(name, known)}")
        return list(dict.fromkeys(wanted))


def read_study(path: Path) -> Study:
    """The study of a YAML, every name in it resolved.

    Raises:
        UserError: the file cannot be read, or something in it is unknown, missing or at odds.
    """
    said = read_yaml(str(path))
    kinds = {"references": Reference, "sets": NegativeSet, "rows": Row, "hypotheses": Hypothesis}
    for key, kind in kinds.items():
        entries = said.get(key) or {}
        said[key] = {
            name: _made(kind, {"name": name, **entry}, f"{key}.{name}", path) for name, entry in entries.items()
        }
    said["data"] = _made(Data, said.get("data") or {}, "data", path)
    study = _made(Study, {"name": path.stem, **said}, "the study", path)
    _check(study, path)
    return study


def _made(kind: type[T], said: Mapping[str, Any], what: str, path: Path) -> T:
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # each kind is a dataclass
    for key in said:
        if key not in known:
            raise UserError(f"{path}: {what} has an unknown key '{key}'.{did_you_mean(key, known)}")
    try:
        return kind(**said)
    except TypeError as error:
        raise UserError(f"{path}: {what} lacks something: {error}.") from None


def _check(study: Study, path: Path) -> None:
    """Raise UserError for a name that nothing has, or a row that is at odds with itself."""
    # Name, where it stands, what it may name.
    named: list[tuple[str, str, Sequence[str]]] = [(study.baseline, "baseline", [*study.rows])]
    named += [(part, "data.parts", [*study.data.parts]) for part in (TEST, VALIDATION)]
    named += [(r.part, f"references.{r.name}.part", [*study.data.parts]) for r in study.references.values()]
    for made in study.sets.values():
        named.append((made.part, f"sets.{made.name}.part", [*study.data.parts]))
        named.append((made.reference, f"sets.{made.name}.reference", [*study.references, *study.rows]))
        named += [(made.earlier, f"sets.{made.name}.earlier", [*study.sets])] if made.earlier else []
    if study.held_out:
        named.append((study.held_out, "held_out", [*study.sets]))
    for row in study.rows.values():
        where = f"rows.{row.name}"
        if [row.trained, bool(row.reference), row.alpha is not None].count(True) != 1:
            raise UserError(f"{path}: {where} must say an objective, a reference, or mle, cpo and alpha.")
        if row.name in study.references and row.reference != row.name:
            raise UserError(f"{path}: {where} has the name of a reference. Give it another name.")
        named += [(row.reference, f"{where}.reference", [*study.references])] if row.reference else []
        named += [(part, where, [*study.rows]) for part in (row.mle, row.cpo)] if row.alpha is not None else []
        named += [(row.set, f"{where}.set", [*study.sets])] if row.trained else []
        named += [(row.rate_of, f"{where}.rate_of", [*study.rows])] if row.rate_of else []
        if row.trained and not row.rate_of and len(study.rates_of(row)) < 3:
            raise UserError(f"{path}: {where} tries fewer than three learning rates.")
    for hypothesis in study.hypotheses.values():
        both = [name for pair in hypothesis.comparisons for name in pair]
        named += [(name, f"hypotheses.{hypothesis.name}", [*study.rows]) for name in both]
    for name, where, known in named:
        if name not in known:
            raise UserError(f"{path}: {where} names '{name}', which is none of {', '.join(known)}.")
    if study.rows[study.baseline].reference or study.rows[study.baseline].alpha is not None:
        raise UserError(f"{path}: the baseline must be a row that is trained.")
    rest = [name for name, count in study.data.parts.items() if count == 0]
    if rest and rest != [list(study.data.parts)[-1]]:
        raise UserError(f"{path}: data.parts: only the last part can be all that are left (0).")
