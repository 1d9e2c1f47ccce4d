"""Strategy and signal `given`: responses and scores that rows list, in shapes that people have. No engine, no Ray."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from data.command.options import load_config, make_config
from data.models import load_tokenizer
from data.shards import NegativeSet
from data.sources.encode import Encoded, encode_pairs
from data.sources.examples import Example
from data.sources.prepare import prepare_groups
from negatives_gen.config import GenerateConfig
from negatives_gen.job.actors import Components
from negatives_gen.job.job import generate
from negatives_gen.strategies.base import Tools
from negatives_gen.strategies.given import STRATEGY
from negatives_gen.verbs.export import ExportConfig, export
from negatives_gen.verbs.extend import ExtendConfig, extend
from negatives_gen.verbs.plan import PlanConfig, predict
from negatives_gen.verbs.stats import statistics
from negatives_gen.verbs.verify import VerifyConfig, verify
from tests.support.commands import ROOT
from tests.support.given_rows import COLUMNS, FACTS, NoEngine, made, nectar, ultrafeedback, write
from tests.support.training import make_trainer
from tests.support.without_ray import without_ray
from tests.support.written import refusal
from trainer.groups.dataset import ContrastiveGroups
from trainer.objectives.pairs import preference_pairs


def test_completions_with_scores_become_groups_with_the_best_as_ground_truth(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 12))
    found = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=3", signals="given")
    groups = {group.prompt: group for group in found.groups()}
    assert len(groups) == 12
    for place, row in enumerate(FACTS[:12]):
        group = groups[row["prompt"]]
        said = [FACTS[(place + offset) % len(FACTS)]["completion"] for offset in range(4)]
        assert group.response == said[1]
        assert [c.text for c in group.negatives] == [said[0], said[2], said[3]]
        assert [c.similarity for c in group.negatives] == [{"given": 5.0}, {"given": 3.0}, {"given": 2.0}]
        assert {c.strategy for c in group.negatives} == {"given"}
        assert all(c.reference_logp is not None and c.reference_logp < 0 for c in group.negatives)
        assert {c.sampler_logp for c in group.negatives} == {None}
    assert f"{path}: 12 rows: 6 train, 6 held out" in caplog.text
    data = found.manifest.job["data"]
    assert data["ground_truth"] == "the best-scored candidate where a row names none"
    assert data["columns"]["candidates"] == "completions[].response"
    assert found.manifest.job["strategies"] == {"given": {"count": 3}}
    assert {group.split for group in found.groups()} == {"train", "test"}
    assert verify(found.folder.path, VerifyConfig()) == []


def test_one_rejected_response_beside_a_chosen_one_is_a_group_of_two(reference: Path, tmp_path: Path) -> None:
    said = [row["completion"] for row in FACTS]
    rows = [{"prompt": row["prompt"], "chosen": said[i], "rejected": said[i - 1]} for i, row in enumerate(FACTS[:6])]
    path = write(tmp_path / "rows.jsonl", rows)
    columns = "prompt=prompt,completion=chosen,candidates=rejected"
    found = made(reference, tmp_path / "set", path, columns=columns, strategies="given=1", signals="rouge")
    read = {group.prompt: (group.response, [c.text for c in group.negatives]) for group in found.groups()}
    assert read == {row["prompt"]: (row["chosen"], [row["rejected"]]) for row in rows}


def test_our_own_preference_file_is_read_back_as_the_groups_that_it_was_made_of(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 6))
    first = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=3", signals="given")
    out = tmp_path / "pairs.jsonl"
    config = make_config(ExportConfig, format="trl-preference", out=str(out), split="all")
    assert export(first.folder.path, config).rows == 18
    columns = "prompt=prompt,completion=chosen,candidates=rejected"
    again = made(reference, tmp_path / "again", str(out), columns=columns, strategies="given=3", signals="rouge")
    assert "; 12 rows of the same prompt and response as another merged into it" in caplog.text
    assert again.manifest.counts["rows_rejected"] == 0
    before, after = (
        {g.id: (g.response_ids, [c.ids for c in g.negatives]) for g in found.groups()} for found in (first, again)
    )
    assert after == before


def test_a_candidate_is_in_tokens_what_a_ground_truth_of_its_prompt_would_be(reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([3] * 6))
    found = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=2", signals="given")
    tokenizer = load_tokenizer(str(reference))
    for group in found.groups():
        for candidate in group.negatives:
            (encoded,) = encode_pairs([(group.prompt, candidate.text)], tokenizer, 128)
            assert isinstance(encoded, Encoded)
            assert candidate.ids == encoded.response_ids
            assert candidate.ids[-1] == group.response_ids[-1]


@pytest.mark.parametrize(
    ("name", "rows", "negatives"), [("ultrafeedback", ultrafeedback([4] * 8), 3), ("nectar", nectar(8), 6)]
)
def test_the_recipes_fit_rows_of_their_shape(
    name: str, rows: list[dict[str, Any]], negatives: int, reference: Path, tmp_path: Path
) -> None:
    flags = {"model": str(reference), "dataset": write(tmp_path / "rows.jsonl", rows), "out": str(tmp_path / "set")}
    flags |= {"scorer_dtype": "float32", "max_length": "128"}
    words = ["--config", str(ROOT / "recipes/given" / f"{name}.yaml")]
    config = load_config(GenerateConfig, [*words, *(w for k, v in flags.items() for w in (f"--{k}", v))], command="x")
    with without_ray():
        manifest = generate(config, Components(engine=NoEngine))
    assert manifest.counts["rows_written"] == 8
    groups = list(NegativeSet(str(tmp_path / "set")).groups())
    assert {len(group.negatives) for group in groups} == {negatives}
    assert {group.query for group in groups} == {row["prompt"] for row in FACTS[:8]}
    if name == "ultrafeedback":
        assert all(group.prompt == f"### Instruction:\n{group.query}\n\n### Response:\n" for group in groups)


@pytest.mark.parametrize("name", ["ultrafeedback", "nectar"])
def test_the_recipes_train_in_the_dtype_that_they_score_in(name: str) -> None:
    text = (ROOT / "recipes/given" / f"{name}.yaml").read_text()
    assert "scorer_dtype: bfloat16" in text
    (command,) = re.findall(r"trainer\.run .*(?:\\\n.*)*", text)
    assert "--bf16 true" in command


def test_other_candidates_or_scores_are_another_job(reference: Path, tmp_path: Path) -> None:
    rows = ultrafeedback([4] * 4)
    options = {"columns": COLUMNS, "strategies": "given=3", "signals": "given"}
    path = write(tmp_path / "rows.jsonl", rows)
    first = made(reference, tmp_path / "set", path, **options).manifest
    assert made(reference, tmp_path / "set", path, **options).manifest == first
    rows[0]["completions"][3]["overall_score"] = 1.5  # ground truths and ids stay
    write(tmp_path / "rows.jsonl", rows)
    assert "data.candidates_sha256" in refusal(lambda: made(reference, tmp_path / "set", path, **options))


def test_ranks_of_which_less_is_better_and_what_the_job_chose_by_them(reference: Path, tmp_path: Path) -> None:
    options = {
        "columns": "candidates=answers[].answer,scores=-answers[].rank",
        "strategies": "given=6",
        "signals": "given",
    }
    found = made(reference, tmp_path / "set", write(tmp_path / "rows.jsonl", nectar(6)), **options)
    for group in found.groups():
        place = next(i for i, row in enumerate(FACTS) if row["prompt"] == group.prompt)
        assert group.response == FACTS[place + 1]["completion"]
        assert [c.similarity["given"] for c in group.negatives] == [-3, -2, -4, -5, -6, -7]


@pytest.mark.parametrize(("given_min", "kept"), [(None, {3}), (2, {2, 3}), (1, {1, 2, 3})])
def test_rows_that_list_fewer_are_kept_where_that_is_allowed(
    reference: Path, tmp_path: Path, given_min: int | None, kept: set[int]
) -> None:
    numbers = [4, 3, 2, 4, 1, 3, 2, 4]
    path = write(tmp_path / "rows.jsonl", ultrafeedback(numbers))
    options = {} if given_min is None else {"given_min": given_min}
    found = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=3", signals="given", **options)
    groups, rejects = list(found.groups()), found.rejects()
    assert {len(group.negatives) for group in groups} == kept
    assert len(groups) == sum(number - 1 in kept for number in numbers)
    assert len(groups) + len(rejects) == len(numbers)
    assert {reject.reason for reject in rejects} == {"too few given negatives"}
    (bare,) = [reject for reject in rejects if reject.detail.startswith("0 of 3")]
    assert bare.detail == "0 of 3: the row lists 0; texts that repeat are passed over"
    entry = found.manifest.job["strategies"]["given"]
    assert entry == {"count": 3, **({} if given_min is None else {"least": given_min})}
    assert verify(found.folder.path, VerifyConfig()) == []
    assert statistics(found)["strategies"]["given"]["count"] == sum(len(group.negatives) for group in groups)


def test_verify_finds_a_group_with_fewer_than_the_manifest_allows(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([2, 4, 4, 3]))
    options = {"strategies": "given=3", "given_min": 1, "signals": "given", "columns": COLUMNS}
    made(reference, tmp_path / "set", path, **options)
    manifest = tmp_path / "set/manifest.json"
    manifest.write_text(manifest.read_text().replace('"least": 1', '"least": 2'))
    assert verify(str(tmp_path / "set"), VerifyConfig(sample=1)) == ["counts"]
    assert "has the negatives {'given': 1}, the manifest says {'given': '2 to 3'}" in capsys.readouterr().out


def test_what_cannot_be_used_is_counted_in_the_reject(reference: Path, tmp_path: Path) -> None:
    rows = ultrafeedback([5, 4])
    (odd, _) = rows
    odd["completions"][4]["overall_score"] = "N/A"
    odd["completions"][0]["response"] = "word " * 400
    odd["completions"][2]["response"] = odd["completions"][1]["response"]  # the ground truth's text
    path = write(tmp_path / "rows.jsonl", rows)
    found = made(reference, tmp_path / "set", path, columns=COLUMNS, strategies="given=3", signals="given")
    (reject,) = found.rejects()
    assert reject.prompt == odd["instruction"]
    assert reject.detail == (
        "1 of 3: the row lists 4, 1 prompt and response too long, 1 score is no number; "
        "texts that repeat are passed over"
    )


def test_what_has_the_tokens_of_the_ground_truth_is_no_negative(reference: Path) -> None:
    tokenizer = load_tokenizer(str(reference))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    listed = ["\ufb01ne", "other", "o\uff54her", "more"]  # a ligature, a wide t
    example = Example("id", "p", "\ufb01ne", alternatives=listed)
    ((group,), _, _) = prepare_groups([example], "prompt-completion", tokenizer, 128)
    tools = Tools(seed=0, context=128, tokenizer=tokenizer)
    assert STRATEGY.add([group], [group], {"count": 2}, tools) == {}
    assert [candidate.text for candidate in group.negatives] == ["other", "more"]
    assert group.response_ids not in [candidate.ids for candidate in group.negatives]


def test_it_mixes_with_other_strategies_under_another_signal(reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 6))
    options = {"columns": COLUMNS, "strategies": "given=2,tn=2,bn=1", "signals": "rouge", "split": "all"}
    found = made(reference, tmp_path / "set", path, **options)
    assert [[c.strategy for c in group.negatives] for group in found.groups()] == [
        ["bn", *["given"] * 2, *["tn"] * 2]
    ] * 6
    with without_ray():
        extend(found.folder.path, make_config(ExtendConfig, out=str(tmp_path / "more"), strategies="tn=3"))
    more = NegativeSet(str(tmp_path / "more"))
    assert {len(group.negatives) for group in more.groups()} == {6}


def test_a_plan_starts_no_engine(reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 12))
    options = {"model": str(reference), "dataset": path, "columns": COLUMNS, "strategies": "given=3"}
    plan = predict(make_config(PlanConfig, **options, signals="given", tokens_per_second=100.0, sample=12))
    assert (plan.groups, plan.tokens["sampled"]) == (12, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategies": "given=3"}, "strategy 'given' needs --columns candidates=COLUMN"),
        (
            {"strategies": "tn=2", "signals": "given"},
            "ranking signal 'given' has values for negatives of given alone, and no 'given' is chosen. Choose other "
            "--signals, or add it to --strategies.",
        ),
        (
            {"strategies": "given=2", "signals": "given", "columns": "candidates=x"},
            "ranking signal 'given' needs --columns scores=COLUMN",
        ),
        (
            {"strategies": "tn=2", "signals": "rouge", "columns": "candidates=x"},
            "--columns candidates=... would change nothing: without scores=... nothing that is chosen reads it.",
        ),
        (
            {"strategies": "tn=2", "signals": "rouge", "columns": "completion=c,candidates=x,scores=y"},
            "--columns candidates=... would change nothing: beside completion=... nothing that is chosen reads it.",
        ),
        (
            {"strategies": "given=2", "given_min": 3, "columns": "candidates=x"},
            "strategy 'given' is to keep groups of at least 3, but given=2 is fewer.",
        ),
        (
            {"strategies": "given=2", "given_min": 0, "columns": "candidates=x"},
            "--given_min must be at least 1, got 0.",
        ),
        ({"strategies": "tn=2", "given_min": 1}, "--given_min would change nothing: no 'given' is chosen."),
        ({"columns": "scores=x"}, "--columns scores=... needs candidates=... beside it"),
    ],
)
def test_what_it_lacks_is_said_before_any_work(options: dict[str, Any], said: str) -> None:
    config = make_config(GenerateConfig, model="m", dataset="facts", out="o", **options)
    assert said in refusal(config.check)


def test_a_finished_set_cannot_be_extended_by_it(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by the manifest and the options alone: before a model is looked at."""
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4] * 6))
    plain = made(
        reference, tmp_path / "plain", path, signals="rouge", columns=COLUMNS, strategies="given=2"
    ).folder.path  # fmt: skip
    monkeypatch.setattr("data.models.check_model", lambda *_: pytest.fail("a model was looked at"))
    for added, said in [
        ({"strategies": "given=3"}, "strategy 'given' reads candidates in the rows of the data source"),
        ({"signals": "given"}, "ranking signal 'given' reads scores in the rows of the data source"),
        ({"strategies": "tn=2", "given_min": 2}, "--given_min 2 would change nothing: a finished set's 'given'"),
        ({"signals": "bleu", "sampler": "m"}, "--sampler would change nothing: no "),
    ]:
        config = make_config(ExtendConfig, out=str(tmp_path / "more"), **added)
        assert said in refusal(lambda config=config: extend(plain, config))
        assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("objective", ["cpo", "cpo-rank"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_groups_of_different_sizes_train(
    objective: str, layout: str, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4, 3, 2] * 4))
    options = {"columns": COLUMNS, "strategies": "given=3", "given_min": 1, "signals": "given", "test_share": 0.0}
    found = made(reference, tmp_path / "set", path, **options)
    sizes = [1 + len(group.negatives) for group in found.groups()]
    assert (found.manifest.job["data"]["test_share"], sorted(set(sizes))) == (0.0, [2, 3, 4])
    if layout == "padded":
        monkeypatch.setattr("trainer.scoring.support._known_obstacle", lambda _: "a test asks for it")
    trainer = make_trainer(
        reference, tmp_path / "set", tmp_path / "out", objective=objective, max_steps=2, logging_steps=1,
        per_device_train_batch_size=len(sizes), learning_rate=1e-5, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer.train()
    first, second = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Before the first step all candidates are alike: best of K is log K, an order of K is log K!.
    expected = [math.log(size if objective == "cpo" else math.factorial(size)) for size in sizes]
    assert first == pytest.approx(sum(expected) / len(sizes), abs=1e-3)
    assert second < first


def test_pairs_are_as_many_as_there_are_candidates(reference: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ultrafeedback([4, 3, 2, 2]))
    options = {"columns": COLUMNS, "strategies": "given=3", "given_min": 1, "signals": "given"}
    found = made(reference, tmp_path / "set", path, **options)
    assert len(preference_pairs(ContrastiveGroups.of([found], "all"), "dpo")) == 3 + 2 + 1 + 1
    config = make_config(ExportConfig, format="trl-preference", out=str(tmp_path / "x.jsonl"), split="all")
    assert export(found.folder.path, config).rows == 3 + 2 + 1 + 1
