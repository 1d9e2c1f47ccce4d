"""Ways to choose among stored candidates: in whole runs, in what a run is known by, with ties and groups of few."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.schema import Candidate
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from tests.support.numbered import group, write
from tests.support.training import cli
from trainer.groups.dataset import ContrastiveGroups
from trainer.run import main
from trainer.scoring.continuations import Continuations
from trainer.scoring.scorer import Scorer

GROUPS = 16
Choose = Callable[[list[Candidate]], list[int]]


def rewritten(
    source: Path, out: Path, change: Callable[[int, list[Candidate]], list[Candidate]], **counts: Any
) -> Path:
    """A set of the first groups of another one, with other negatives; these are scored already."""
    old = NegativeSet(str(source))
    groups = list(old.groups())[:GROUPS]
    for number, made in enumerate(groups):
        made.negatives = change(number, made.negatives)
    job = {**old.manifest.job, "strategies": counts}
    writer = NegativeSetWriter(str(out), job, list(old.signals))
    writer.begin()
    writer.write_shard(0, groups, [], seconds={}, layout=old.manifest.shards[0].layout)
    writer.finish(1)
    return out


@pytest.fixture(scope="module")
def four(reference: Path, negative_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four candidates a group: a shuffled truth, the same tokens the other way round, and its first half twice."""
    scorer = Scorer.load(str(reference), dtype="float32")
    originals = list(NegativeSet(str(negative_set)).groups())[:GROUPS]

    def candidates(number: int, negatives: list[Candidate]) -> list[Candidate]:
        whole = negatives[0].ids
        half = [*whole[: len(whole) // 2], whole[-1]]
        texts = [whole, [*whole[-2::-1], whole[-1]], half, half]
        (logps,) = scorer.score([Continuations(originals[number].prompt_ids, texts)])
        return [
            Candidate("an", ids, f"text {place}", "stop", reference_logp=logp, similarity={"embedding": similarity})
            for place, (ids, logp, similarity) in enumerate(zip(texts, logps, [0.1, 0.4, 0.3, 0.4], strict=True))
        ]

    return rewritten(negative_set, tmp_path_factory.mktemp("sets") / "four", candidates, an={"count": 4})


@pytest.fixture(scope="module")
def few(four: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--strategies given=4 --given_min 1` makes of rows that list one to four candidates."""

    def some(number: int, negatives: list[Candidate]) -> list[Candidate]:
        for negative in negatives:
            negative.strategy, negative.finish_reason = "given", None
        return negatives[: 1 + number % 4]

    settings = {"count": 4, "least": 1}
    return rewritten(four, tmp_path_factory.mktemp("sets") / "few", some, given=settings)


def by(value: Callable[[Candidate], float]) -> Choose:
    """The two of the highest value, of equal ones the first."""

    def choose(candidates: list[Candidate]) -> list[int]:
        return sorted(sorted(range(len(candidates)), key=lambda place: -value(candidates[place]))[:2])

    return choose


HARD = by(lambda one: (one.reference_logp or 0.0) / len(one.ids))
SIMILAR = by(lambda one: one.similarity["embedding"] or 0.0)


def diverse(candidates: list[Candidate]) -> list[int]:
    """The first half of the text is the farthest from all of it."""
    return [0, 2] if len(candidates) > 2 else list(range(len(candidates)))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("objective", "way", "choose", "strategy"),
    [
        ("cpo", "hard", HARD, "an"),
        ("cpo-rank", "similar", SIMILAR, "an"),
        ("dpo", "diverse", diverse, "an"),
        ("cpo-rank", "hard", HARD, "given"),
        ("dpo", "similar", SIMILAR, "given"),
    ],
)
def test_a_run_on_what_a_way_takes_is_one_on_a_set_of_just_these(
    objective: str, way: str, choose: Choose, strategy: str, four: Path, few: Path, reference: Path, tmp_path: Path
) -> None:
    whole = four if strategy == "an" else few
    taken: list[list[int]] = []

    def chosen(_: int, negatives: list[Candidate]) -> list[Candidate]:
        taken.append(choose(negatives))
        return [negatives[place] for place in taken[-1]]

    least = {} if strategy == "an" else {"least": 1}
    alone = rewritten(whole, tmp_path / "chosen", chosen, **{strategy: {"count": 2, **least}})
    assert any(places != list(range(len(places))) for places in taken)  # not the first ones, which no way would take
    weights = {}
    for name, negatives, use in (("way", whole, f"{strategy}=2:{way}"), ("alone", alone, f"{strategy}=2")):
        more = ["--objective", objective, "--use", use, "--max_steps", "2", "--save_strategy", "no"]
        assert main(cli(reference, negatives, tmp_path / name, *more, "--report_to", "none")) == 0
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / name / "trainer_job.json").read_text())["use"] == use
    assert weights["way"] == weights["alone"]
    assert weights["way"] != (reference / "model.safetensors").read_bytes()


@pytest.mark.seconds
def test_another_way_is_another_job(
    four: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--max_steps", "2", "--save_steps", "1", "--report_to", "none"]
    assert main(cli(reference, four, tmp_path / "out", *more, "--use", "an=2:hard")) == 0
    for out, checkpoint in (("out", "true"), ("other", str(tmp_path / "out/checkpoint-1"))):
        for use in ("an=2:similar", "an=2"):
            words = [*more, "--use", use, "--resume_from_checkpoint", checkpoint]
            assert main(cli(reference, four, tmp_path / out, *words)) == 2
            assert f"its use is 'an=2:hard', this job's is '{use}'" in capsys.readouterr().err.splitlines()[-1]
    words = [*more, "--use", "an=2:hard", "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-1")]
    assert main(cli(reference, four, tmp_path / "again", *words)) == 0
    first, again = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("way", "expected"),
    [("hard", [0, 1, 2]), ("similar", [0, 1, 2]), ("diverse", [0, 1, 2])],
)
def test_of_equal_candidates_the_first_ones_are_taken(tmp_path: Path, way: str, expected: list[int]) -> None:
    """Probability per token, similarity and tokens are equal; how often the tokens occur is not."""
    made = group(1)
    made.negatives = [
        Candidate("an", [5, 6] * (1 + place), "t", reference_logp=-1.0 - place, similarity={"embedding": 0.5})
        for place in range(20)
    ]
    negatives = write(tmp_path / "set", [made], 1, "train", strategies={"an": {"count": 20}})
    groups = ContrastiveGroups.of([negatives], "train", f"an=3:{way}")
    assert [len(c) // 2 - 1 for c in groups[0].tokens.continuations[1:]] == expected


@pytest.mark.parametrize("way", ["hard", "similar", "diverse", "random"])
def test_a_group_of_fewer_candidates_than_are_wanted_keeps_all_of_them(few: Path, way: str) -> None:
    negatives = NegativeSet(str(few))
    groups = ContrastiveGroups.of([negatives], "train", f"given=3:{way}")
    wholes = list(negatives.groups())
    for number, whole in enumerate(wholes):
        taken = [list(c) for c in groups[number].tokens.continuations[1:]]
        assert len(taken) == min(3, 1 + number % 4)
        if len(whole.negatives) <= 3:
            assert taken == [one.ids for one in whole.negatives]
    if way != "random":  # whose tokens are those of an average draw
        for block in groups.blocks:
            assert groups.tokens(block).tolist() == [groups[i].tokens.packed_length for i in block]
