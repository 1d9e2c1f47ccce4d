"""From a study and what is known already to the steps that are left: our own commands, with what each needs first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.study.design import TEST, VALIDATION, NegativeSet, Reference, Row, Study
from recipes.study.records import Records
from trainer.ensemble.ensembles import directory_name

# Of every training: what was stopped goes on, and the tokens that its forward passes read are counted.
TRAINING = {
    "save_strategy": "no",
    "resume_from_checkpoint": True,
    "disable_tqdm": True,
    "include_num_input_tokens_seen": True,
}


@dataclass(frozen=True)
class Step:
    """One command, and the file that it writes last.

    Attributes:
        name: e.g. "train an 3e-05 0".
        words: behind `python -m`.
        done: the file that stands for the step.
        needs: names of steps that come first.
        cores: that it keeps busy, 1 or 2.
    """

    name: str
    words: tuple[str, ...]
    done: Path
    needs: tuple[str, ...] = ()
    cores: int = 1

    @property
    def kind(self) -> str:
        """What steps of like cost share: the command, and the row or set."""
        return " ".join(self.name.split(" ")[:2])


@dataclass
class Steps:
    """The steps that a study needs for what is not known yet, in an order in which they could be run.

    Args:
        study: what is asked for.
        folder: of the study's runs.
        records: what is known already, which needs no step.
        rates: row -> its chosen rate; of a row that has none yet, only the steps that choose one are given.
        second_folder: see `Study.second_model`.
    """

    study: Study
    folder: Path
    records: Records
    rates: Mapping[str, float]
    steps: dict[str, Step] = field(default_factory=dict)

    def of(self, only: Sequence[str] = ()) -> list[Step]:
        """All steps for the comparisons asked for, those that another needs before it; see `Study.comparisons`."""
        for row, other in self.study.comparisons(only):
            missing = [seed for seed in self.study.seeds if not self.records.has(row, other, seed)]
            if missing and self._known(row) and self._known(other):
                for seed in missing:
                    self._evaluate(row, other, seed)
        return list(self.steps.values())

    # --- what stands where

    def reference_folder(self, name: str) -> Path:
        """The directory of a reference."""
        return self.folder / "references" / name

    def row_folder(self, row: str, rate: float, seed: int) -> Path:
        """The directory of a row's model."""
        return self.folder / "rows" / row / f"{rate:g}" / f"seed-{seed}"

    def choice_folder(self, row: str) -> Path:
        """The directory of the evaluation that chooses a row's rate."""
        return self.folder / "choices" / row

    def result_folder(self, row: str, other: str, seed: int) -> Path:
        """The directory of the evaluation of a row beside another."""
        return self.folder / "results" / row / f"beside-{other}" / f"seed-{seed}"

    def part_file(self, name: str) -> Path:
        """The file of a part of the data."""
        return self.folder / "data" / f"{name}.jsonl"

    # --- steps, each with those that it needs

    def _known(self, row: str) -> bool:
        """Whether all rates are known that a row hangs on; the steps that choose one that is not are added."""
        known = [self._rate_known(name) for name in trained_rows(self.study, row)]
        return all(known)

    def _rate_known(self, row: str) -> bool:
        tuned = self.study.tuned(row)
        if tuned in self.rates:
            return True
        before = [self._rate_known(name) for name in trained_rows(self.study, tuned) if name != tuned]
        if all(before):
            self.choose(self.study.rows[tuned])
        return False

    def _add(self, step: Step) -> str:
        return self.steps.setdefault(step.name, step).name

    def _reference(self, reference: Reference) -> str:
        out, model, needs = self.reference_folder(reference.name), reference.model, ()
        if reference.from_scratch:
            model = str(self.folder / "blank" / reference.name)
        if reference.blank:
            read = {"dataset": self.part_file(reference.part), "task": self.study.data.task, "test_share": 0}
            words = ("data.blank", *flags({**read, "out": model, **reference.blank}))
            needs = (self._add(Step(f"blank {reference.name}", words, Path(model) / "config.json")),)
        options = {
            "objective": "mle",
            "model": model,
            "dataset": self.part_file(reference.part),
            "task": self.study.data.task,
            "test_dataset": self.part_file(VALIDATION),
            "output_dir": out,
            **({"from_scratch": True} if reference.from_scratch else {}),
            **TRAINING,
            **reference.options,
        }
        words = ("trainer.run", *flags(options))
        return self._add(Step(f"reference {reference.name}", words, out / "trainer_state.json", needs))

    def _set(self, made: NegativeSet, seed: int) -> tuple[Path, str]:
        """The directory of a set, and the step that makes it; of a row's model there is a set for each seed."""
        by_row = made.reference not in self.study.references
        out = self.folder / "sets" / made.name / (f"seed-{seed}" if by_row else "all")
        model, needed = self.checkpoint(made.reference, seed)
        options: dict[str, Any] = {
            "model": model,
            "dataset": self.part_file(made.part),
            "task": self.study.data.task,
            # Groups that are ranked say that they are of the test half, as evaluations ask for them.
            **({"test_dataset": self.part_file(TEST), "split": "test"} if made.part == TEST else {"test_share": 0}),
            "out": out,
            "seed": seed if by_row else 0,
        }
        needs = [needed]
        if made.earlier:
            options["earlier_set"], earlier = self._set(self.study.sets[made.earlier], seed)
            needs.append(earlier)
        words = ("negatives_gen", *flags({**options, **made.options}))
        name = f"set {made.name}" + (f" {seed}" if by_row else "")
        return out, self._add(Step(name, words, out / "manifest.json", tuple(needs), cores=2))

    def _train(self, row: Row, rate: float, seed: int) -> tuple[Path, str]:
        made, out = self.study.sets[row.set], self.row_folder(row.name, rate, seed)
        shards, set_step = self._set(made, seed)
        options = {
            "objective": row.objective,
            "model": self.checkpoint(made.reference, seed)[0],
            "shards": shards,
            "output_dir": out,
            **TRAINING,
            **self.study.training,
            **row.options,
            "learning_rate": rate,
            "seed": seed,
        }
        words = ("trainer.run", *flags(options))
        return out, self._add(Step(f"train {row.name} {rate:g} {seed}", words, out / "trainer_state.json", (set_step,)))

    def _ensemble(self, row: Row, seed: int) -> tuple[Path, str]:
        assert row.alpha is not None
        out = self.folder / "ensembles" / row.name / f"seed-{seed}"
        (mle, first), (cpo, second) = (self.checkpoint(name, seed) for name in (row.mle, row.cpo))
        words = ("trainer.ensemble", *flags({"mle": mle, "cpo": cpo, "output_dir": out, "alpha": row.alpha}))
        model = out / directory_name(float(row.alpha))
        return model, self._add(Step(f"ensemble {row.name} {seed}", words, model / "ensemble.json", (first, second)))

    def checkpoint(self, name: str, seed: int) -> tuple[Path, str]:
        """The model of a row, at its chosen rate, or of a reference; and the step that makes it."""
        if name in self.study.references:
            reference = self.study.references[name]
            return self.reference_folder(name), self._reference(reference)
        row = self.study.rows[name]
        if row.reference:
            return self.checkpoint(row.reference, seed)
        if not row.trained:
            return self._ensemble(row, seed)
        return self._train(row, self.rates[self.study.tuned(name)], seed)

    def choose(self, row: Row) -> None:
        """The evaluation of a row at all its rates, on the validation prompts."""
        out, seed = self.choice_folder(row.name), self.study.seeds[0]
        trained = {f"{rate:g}": self._train(row, rate, seed) for rate in self.study.rates_of(row)}
        options, needs = self._evaluation(VALIDATION, self.study.choose_metrics)
        models = [f"{name}={path}" for name, (path, _) in trained.items()]
        words = ("evaluation.run", *flags({**options, "out": out}), "--model", *models)
        needs = (*(step for _, step in trained.values()), *needs)
        self._add(Step(f"choose {row.name}", words, out / "report.json", needs))

    def _evaluate(self, row: str, other: str, seed: int) -> None:
        """The evaluation of a row beside another one, on the test prompts; what was answered once is in the store."""
        out = self.result_folder(row, other, seed)
        made = [(name, *self.checkpoint(name, seed)) for name in dict.fromkeys((other, row))]
        options, needs = self._evaluation(TEST, self.study.metrics)
        models = [f"{name}={path}" for name, path, _ in made]
        words = ("evaluation.run", *flags({**options, "out": out}), "--model", *models)
        needs = (*(step for _, _, step in made), *needs)
        # Each model's answers are made by its evaluation beside the baseline, the baseline's by its own.
        for name in dict.fromkeys((other, row)):
            first = (name, self.study.baseline, seed)
            if first != (row, other, seed) and not self.records.has(*first):
                needs = (*needs, "evaluate {} {} {}".format(*first))
        self._add(Step(f"evaluate {row} {other} {seed}", words, out / "report.json", needs))

    def _evaluation(self, part: str, metrics: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        options: dict[str, Any] = {
            **self._prompts(part),
            "task": self.study.data.task,
            "store": self.folder / "store",
            "metrics": metrics,
            **self.study.evaluation,
            **(self.study.of_tests if part == TEST else {}),
        }
        needs: tuple[str, ...] = ()
        if self.study.second_model in self.study.references:
            second = self.study.references[self.study.second_model]
            options["second_model"], needs = self.reference_folder(second.name), (self._reference(second),)
        elif self.study.second_model:
            options["second_model"] = self.study.second_model
        if "ranking" in metrics and self.study.held_out:
            options["shards"], step = self._set(self.study.sets[self.study.held_out], self.study.seeds[0])
            needs = (*needs, step)
        return options, needs

    def _prompts(self, part: str) -> dict[str, Any]:
        if as_named := self.study.data.evaluated_as:
            return {"dataset": as_named, "test_dataset": self.part_file(part), "split": "test"}
        return {"dataset": self.part_file(part), "split": "all"}


def trained_rows(study: Study, name: str) -> list[str]:
    """The rows whose training a row, or a set's reference, hangs on, itself included; the first ones first."""
    if name not in study.rows:
        return []
    row = study.rows[name]
    if row.alpha is not None:
        return [*trained_rows(study, row.mle), *trained_rows(study, row.cpo)]
    return [*trained_rows(study, study.sets[row.set].reference), name] if row.trained else []


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [word for key, value in options.items() for word in (f"--{key}", _word(value))]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return repr(value) if isinstance(value, float) else str(value)
