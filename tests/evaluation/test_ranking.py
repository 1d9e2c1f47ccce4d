"""Measures that need no answers, worked out by hand: ground truths, ranking of held-out groups."""

import functools
import json
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.command.errors import UserError
from data.models import load_tokenizer, tokenizer_hash, weights_hash
from data.schema import Candidate, Group
from data.set_writer import NegativeSetWriter
from data.shards import NegativeSet
from data.sources.prepare import prepare_groups
from evaluation.answers.cache import Store
from evaluation.answers.checkpoints import Checkpoint
from evaluation.measure import gather
from evaluation.metrics.base import PromptEvidence
from evaluation.metrics.logps import candidate_logps, truth_logps
from evaluation.metrics.ranking import Ranking, RankingOptions, ranking_values, read_held_out
from evaluation.metrics.second_model import SecondModelOptions
from evaluation.metrics.statistics import Estimate
from evaluation.metrics.truth import Truth
from evaluation.subject import Evaluation, Part
from negatives_gen.models.loading import load_scorer
from tests.support.read_examples import load_examples
from tests.support.tiny import make_negative_set
from tests.support.written import job_of
from trainer.groups.dataset import ContrastiveGroups
from trainer.scoring.scorer import Scorer


def ranking(scores: Sequence[Sequence[float]], groups: list[Group]) -> dict[str, Estimate]:
    """What is measured where a checkpoint gives the candidates of all groups these log-probabilities."""
    values = {("m", ""): ranking_values(scores, groups, "embedding")}
    evidence = PromptEvidence(Ranking.columns, values, of_prompts=Ranking.of_prompts)
    return {m.metric: m.estimate for m in evidence.measurements(Part("test", [0]))}


def test_truth_logps_equal_the_models_own(reference: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    task = "prompt-completion"
    groups = prepare_groups(load_examples("facts", task, "test", 3), task, tokenizer, 128).groups
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).eval()
    sums, per_token = [], []
    for group in groups:
        ids = torch.tensor([[*group.prompt_ids, *group.response_ids]])
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, len(group.prompt_ids) - 1 : -1]
        logp = logps.gather(-1, torch.tensor(group.response_ids)[:, None]).sum().item()
        sums.append(logp)
        per_token.append(logp / len(group.response_ids))
    store, identity = Store(str(tmp_path)), {"weights_sha256": "w"}
    logps = truth_logps(store, identity, groups, lambda: Scorer.load(str(reference)))
    assert logps == pytest.approx(sums, abs=1e-4)
    checkpoint = Checkpoint("m", str(reference), identity, 128, groups)
    evaluation = Evaluation(
        "facts", {"task": task}, "test", 3, "", (checkpoint,), None, (), Part("test", [0]), None, 0, store
    )
    metric = Truth(SecondModelOptions(), evaluation)
    values = metric.values(checkpoint, lambda dtype: pytest.fail("the model was loaded again"))
    assert values["truth_logp"] == logps
    assert values["truth_logp_per_token"] == pytest.approx(per_token, abs=1e-5)

    def load() -> Scorer:
        raise AssertionError("the model was loaded again")

    assert truth_logps(store, identity, groups, load) == logps


def test_a_second_model_that_knows_the_truths_less_well_is_told(reference: Path, tmp_path: Path) -> None:
    """A model, and the same made surer than it can be: worse, whatever it was."""
    surer = tmp_path / "surer"
    shutil.copytree(reference, surer)
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
    model.lm_head.weight.data *= 20
    model.save_pretrained(surer)
    task, tokenizer, store = "prompt-completion", load_tokenizer(str(reference)), Store(str(tmp_path / "store"))
    groups = prepare_groups(load_examples("facts", task, "test", 30), task, tokenizer, 128).groups

    def notes(of: Path, second: Path) -> list[str]:
        identity = {"weights_sha256": weights_hash(str(of)), "tokenizer_sha256": tokenizer_hash(tokenizer)}
        checkpoint = Checkpoint("policy", str(of), identity, 128, groups)
        part = Part("test", list(range(len(groups))))
        evaluation = Evaluation("facts", {"task": task}, "test", 30, "", (checkpoint,), None, (), part, None, 0, store)
        metric = Truth(SecondModelOptions(second_model=str(second)), evaluation)
        assert metric.identity()["second_model"]["name"] == str(second)
        return gather([metric], [checkpoint], []).notes(part)

    assert notes(reference, reference) == notes(surer, reference) == []
    (said,) = notes(reference, surer)
    own = truth_logps(store, {}, groups, lambda: Scorer.load(str(reference)))
    worse = truth_logps(store, {"of": "surer"}, groups, lambda: Scorer.load(str(surer)))
    apart = [a - b for a, b in zip(own, worse, strict=True)]
    ahead, error = statistics.fmean(apart), statistics.stdev(apart) / len(apart) ** 0.5
    known = re.match(
        r"The second model '(.+)' knows the ground truths less well than policy \(by (\S+) ± (\S+) nats", said
    )
    assert known is not None
    assert known[1] == str(surer)
    assert float(known[2]) == pytest.approx(ahead, abs=0.006)
    assert float(known[3]) == pytest.approx(error, rel=0.2)  # a bootstrap's
    # One that can read none of them is told too, and ends nothing.
    config = json.loads((surer / "config.json").read_text())
    (surer / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4}))
    assert notes(reference, surer) == [
        "30 ground truths could not be scored by the second model: longer than the second model's context."
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranking_of_the_reference_itself_has_no_preference(reference: Path, tmp_path: Path, dtype: str) -> None:
    """Scored in what the set was scored in: else rounding would pass for a preference."""
    make_negative_set(tmp_path / "set", reference, num_groups=48, num_negatives=3, dtype=dtype)
    held_out = read_held_out(str(tmp_path / "set"), "all", [])
    groups = held_out.groups
    assert held_out.record["scorer_dtype"] == held_out.dtype == dtype
    assert held_out.signal == "embedding"
    load = functools.partial(load_scorer, str(reference), dtype=held_out.dtype)
    found = ranking(candidate_logps(Store(str(tmp_path)), {}, groups, held_out.dtype, load), groups)
    assert found["reward_top1"].mean == 0.0
    assert found["reward_top1"].interval == (0, pytest.approx(1 - 0.025 ** (1 / 48)))
    assert found["kendall_tau"].mean == 0.0
    likelier = [sum(g.reference_logp > c.reference_logp for c in g.negatives) / 3 for g in groups]  # type: ignore[operator]
    assert found["ranking_accuracy"].mean == pytest.approx(sum(likelier) / len(likelier), abs=1e-6)


def test_of_the_reference_itself_no_gain_over_itself_is_reported(reference: Path, negative_set: Path, tmp_path: Path):
    tokenizer = tokenizer_hash(load_tokenizer(str(reference)))
    itself, other = (
        Checkpoint(name, str(reference), {"tokenizer_sha256": tokenizer, "weights_sha256": weights}, 128, [])
        for name, weights in (("reference", weights_hash(str(reference))), ("other", "f" * 64))
    )
    evaluation = Evaluation(
        "facts", {}, "all", 3, "", (itself, other), None, (), Part("all", [0]), None, 0, Store(str(tmp_path))
    )
    metric = Ranking(RankingOptions(str(negative_set)), evaluation)
    load = functools.partial(load_scorer, str(reference))
    assert set(metric.values(itself, lambda dtype: load(dtype=dtype))) == {"ranking_accuracy"}
    found = metric.values(other, lambda dtype: load(dtype=dtype))
    assert set(found) == {"ranking_accuracy", "reward_top1", "kendall_tau"}


def test_groups_that_a_checkpoint_does_not_take_are_refused_before_anything_is_generated(
    reference: Path, tmp_path: Path
) -> None:
    make_negative_set(tmp_path / "set", reference, num_groups=4, num_negatives=1)
    short = shutil.copytree(reference, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    identity = {"tokenizer_sha256": tokenizer_hash(load_tokenizer(str(reference)))}
    fits, does_not = (Checkpoint(path.name, str(path), identity, 8, []) for path in (reference, short))
    assert len(read_held_out(str(tmp_path / "set"), "all", [fits]).groups) == 4
    with pytest.raises(UserError, match=r"a sequence of group [0-9a-f]{32} has \d+ tokens, the model's context 8\."):
        read_held_out(str(tmp_path / "set"), "all", [fits, does_not])


def test_prompts_that_a_set_was_trained_on_are_warned_of(
    reference: Path, negative_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = {"tokenizer_sha256": tokenizer_hash(load_tokenizer(str(reference)))}
    groups = list(NegativeSet(str(negative_set)).groups())
    asked = [*groups[:5], replace(groups[0], id="f" * 32)]
    for prompts, said in ((asked, f"5 of 6 prompts lie in the training half of '{negative_set}'"), (asked[5:], "")):
        caplog.clear()
        read_held_out(str(negative_set), "all", [Checkpoint("m", str(reference), identity, 64, prompts)])
        assert said in caplog.text if said else "training half" not in caplog.text


def test_ranking_metrics_follow_the_change_from_the_reference(reference: Path, tmp_path: Path) -> None:
    """Stored reference values shifted by hand: the policy's gains are then known exactly."""
    scorer, store = Scorer.load(str(reference)), Store(str(tmp_path))

    def group(gains: list[float], similarity: list[float]) -> Group:
        made = Group("g", "p", "r", [5, 6], [7, 0])
        made.negatives = [
            Candidate("an", [8 + i, 0], f"t{i}", similarity={"embedding": s}) for i, s in enumerate(similarity)
        ]
        from trainer.scoring.continuations import Continuations

        own = scorer.score([Continuations(made.prompt_ids, [made.response_ids, *(c.ids for c in made.negatives)])])[0]
        made.reference_logp = own[0] - gains[0]
        for candidate, logp, gain in zip(made.negatives, own[1:], gains[1:], strict=True):
            candidate.reference_logp = logp - gain
        return made

    # Gains fall as similarity does: the order agrees entirely. Then exactly reversed.
    agrees, reversed_order = group([3.0, 2.0, 1.0], [0.9, 0.1]), group([1.0, 2.0, 3.0], [0.9, 0.1])
    found = ranking(candidate_logps(store, {}, [agrees], "float32", lambda: scorer), [agrees])
    assert (found["reward_top1"].mean, found["kendall_tau"].mean) == (1.0, 1.0)
    scores = candidate_logps(store, {}, [reversed_order], "float32", lambda: scorer)
    found = ranking(scores, [reversed_order])
    assert (found["reward_top1"].mean, found["kendall_tau"].mean) == (0.0, -1.0)


def test_equal_gains_are_no_preference_however_long_the_candidates() -> None:
    """All gain 0.52 nats; in float32 the sums of long texts would tell them apart."""
    made = Group("g", "p", "r", [5, 6], [7, 0], reference_logp=-700.1)
    made.negatives = [
        Candidate("an", [8, 0], "t", reference_logp=logp, similarity={"embedding": similarity})
        for logp, similarity in ((-351.8, 0.9), (-20.5, 0.1))
    ]
    found = ranking([[-700.1 + 0.52, -351.8 + 0.52, -20.5 + 0.52]], [made])
    assert (found["reward_top1"].mean, found["kendall_tau"].mean) == (0.0, 0.0)


def scored(id_: str, strategies: Sequence[str], *scores: float | None) -> Group:
    made = Group(id_, "p", "r", [5, 6], [7, 0], reference_logp=-10.0)
    made.negatives = [
        Candidate(strategy, [8 + i, 0], f"t{i}", reference_logp=-10.0, similarity={"given": score})
        for i, (strategy, score) in enumerate(zip(strategies, scores, strict=True))
    ]
    return made


def test_tau_is_over_the_candidates_that_the_signal_has_values_for() -> None:
    """The first negative gained most, but has no score: among the others the order agrees. Who has none has no tau."""
    groups = [scored("a", ("bn", "given", "given"), None, 4.0, 2.0), scored("b", ("bn", "bn"), None, None)]
    found = ranking_values([[-8.0, -7.0, -9.0, -9.5], [-8.0, -9.0, -9.0]], groups, "given")
    assert found["kendall_tau"] == [1.0, None]
    assert found["reward_top1"] == [0.0, 1.0]
    estimates = PromptEvidence(Ranking.columns, {("m", ""): found}, of_prompts=False)
    measured = {m.metric: m.estimate for m in estimates.measurements(Part("test", [0]))}
    assert (measured["kendall_tau"].mean, measured["kendall_tau"].n) == (1.0, 1)
    assert measured["reward_top1"].n == 2


def test_the_record_says_over_whom_tau_is(tmp_path: Path) -> None:
    job = {**job_of(bn=1, given=1), "signals": {"given": {"only_of": ["given"]}}}
    writer = NegativeSetWriter(str(tmp_path / "set"), job, ["given"])
    writer.begin()
    writer.write_shard(0, [scored("a" * 32, ("bn", "given"), None, 4.0)], [], seconds={}, layout="packed")
    writer.finish(1)
    record = read_held_out(str(tmp_path / "set"), "all", []).record
    assert record["kendall_tau"] == {"signal": "given", "strategies": ["given"]}
    said = Ranking.summary_of({"shards": {**record, "name": "S"}})
    assert said == "1 group of S (Kendall's tau by given, over given alone)"


def test_a_checkpoint_that_transformers_cannot_load_is_one_line(reference: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(reference, model)
    config = json.loads((model / "config.json").read_text())
    with_code = {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (model / "config.json").write_text(json.dumps({**config, **with_code}))
    (model / "code.py").touch()
    group = Group("g", "p", "r", [5, 6], [7, 0])
    checkpoint, store = Checkpoint("m", str(model), {"weights_sha256": "w"}, 128, [group]), Store(str(tmp_path))
    parts = Part("test", [0]), None
    evaluation = Evaluation("facts", {"task": "t"}, "test", 1, "", (checkpoint,), None, (), *parts, 0, store)
    with pytest.raises(
        UserError, match=r"^transformers cannot load model 'm': [^\n]+ An evaluation runs no code of [^\n]+$"
    ):
        gather([Truth(SecondModelOptions(), evaluation)], [checkpoint], [])
    assert not (tmp_path / "logps").exists()


def of_several_kinds(out: Path) -> str:
    """Three groups with two an and a bn each, but for the last, which has no bn; nothing was scored."""
    writer = NegativeSetWriter(str(out), job_of(an=2, bn=1), ["given"])
    writer.begin()
    kinds = [("an", "an", "bn"), ("an", "an", "bn"), ("an", "an")]
    groups = [scored(str(i) * 32, names, *(0.5 for _ in names)) for i, names in enumerate(kinds)]
    for group in groups:
        group.negatives[1].reference_logp = -1.0  # the likelier one
    writer.write_shard(0, groups, [], seconds={}, layout="packed")
    writer.finish(1)
    return str(out)


def test_use_takes_negatives_as_the_trainer_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = of_several_kinds(tmp_path / "set")

    def taken(use: str | None) -> list[list[str]]:
        return [[c.text for c in group.negatives] for group in read_held_out(path, "all", [], use).groups]

    assert taken(None) == [["t0", "t1", "t2"], ["t0", "t1", "t2"], ["t0", "t1"]]
    assert taken("an=1:hard") == [["t1"]] * 3
    assert taken("bn=1,an=1") == [["t2", "t0"], ["t2", "t0"], ["t0"]]
    assert "left out" not in caplog.text
    assert taken("bn=1") == [["t2"]] * 2
    assert f"1 group of '{path}' left out: none of the negatives of --use bn=1" in caplog.text
    trained = ContrastiveGroups.of([NegativeSet(path)], "all", "an=1:random", seed=3)
    drawn = read_held_out(path, "all", [], "an=1:random", seed=3).groups
    assert [g.negatives[0].ids for g in drawn] == [list(trained[i].tokens.continuations[1]) for i in range(3)]
    for use, said in (("tn=1", "no 'tn'"), ("an=3", "Ask for less"), ("an=1:odd", "is no way to choose")):
        with pytest.raises(UserError, match=said):
            read_held_out(path, "all", [], use)


def test_the_record_says_which_negatives(tmp_path: Path) -> None:
    record = read_held_out(of_several_kinds(tmp_path / "set"), "all", [], "bn=1").record
    assert (record["use"], record["groups"]) == ("bn=1", 2)
    assert Ranking.summary_of({"shards": {**record, "name": "S"}}) == "2 groups of S, bn=1"
