"""Stage 3: the whole command with real vLLM and a judge that always says A, and what a repeated one does."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import negatives_gen.models.engine
from data.command.errors import INTERRUPTED, UserError
from data.command.options import load_config, make_config
from data.models import load_tokenizer
from data.sources.prepare import prepare_groups
from evaluation.config import EvaluateConfig
from evaluation.metrics.statistics import Estimate
from evaluation.report import read_report
from evaluation.report.files import report_schema
from evaluation.run import evaluate
from negatives_gen.models.engine import Sample
from tests.support.answering import Engines
from tests.support.chat_server import ChatAPIStub, chat_api_stub
from tests.support.commands import ROOT, ForkedCommand, fork_command
from tests.support.read_examples import load_examples
from tests.support.tiny import copy_minilm, with_context
from tests.support.written import scalars
from trainer.scoring.scorer import Scorer

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def always_a() -> Iterator[ChatAPIStub]:
    """A judge that always says A."""
    with chat_api_stub() as stub:
        stub.answer = lambda request: ("A", "stop")
        yield stub


def words(model: Path, negative_set: Path, out: Path, judge: ChatAPIStub) -> list[str]:
    return [
        "--model", f"first={model}", "--model", f"second={model}", "--dataset", "facts", "--split", "train",
        "--limit", "12", "--max_new_tokens", "10", "--decode", "greedy", "--decode", "beam2",
        "--second_model", str(model), "--shards", str(negative_set), "--out", str(out),
        "--judge.model", "m", "--judge.base_url", judge.url, "--against", "truth", "--against", "first",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def evaluation(
    answering_model: Path, negative_set: Path, always_a: ChatAPIStub, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`python -m evaluation.run` on two names for the same model, with real vLLM."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    more = ["--report_to", "tensorboard"]
    done = fork_command("evaluation.run", *words(answering_model, negative_set, out, always_a), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    # What vLLM and torch print is in a file, which a finished evaluation needs no more.
    others = [line for line in done.stderr.splitlines() if not re.match(r"(INFO|WARNING) (data|evaluation)\.", line)]
    assert others == []
    assert "evaluation_log.txt'" in done.stderr
    assert not (out / "evaluation_log.txt").exists()
    assert "starting the engine (about 60 s)" in done.stdout
    assert "safetensors" not in done.stdout
    assert "correct answers" in done.stdout
    assert str(out) in done.stdout
    return out


def measured(out: Path, **wanted: str) -> dict[tuple[str, str], Estimate]:
    """(metric, decoding) -> estimate of the measurements that match."""
    found = read_report(str(out)).measurements
    chosen = [m for m in found if all(getattr(m, key) == value for key, value in wanted.items())]
    return {(m.metric, m.decoding): m.estimate for m in chosen}


def test_trackers_are_told_of_answers_verdicts_and_measurements(evaluation: Path) -> None:
    found = scalars(evaluation.parent / "out-tensorboard/out")
    assert [value for _, value in found["answers/sets"]] == [1, 2, 3, 4, 5, 6]  # with those that the reverse KL needs
    spent = read_report(str(evaluation)).job["judge_spent"]
    assert found["judge/requests"][-1][1] == spent["verdicts"] > 0
    assert found["judge/answered"][-1][1] == found["judge/questions"][-1][1]
    for (metric, decoding), estimate in measured(evaluation, model="first", against="truth").items():
        ((_, value),) = found[f"first/{decoding}/{metric}/truth"]
        assert value == pytest.approx(estimate.mean, rel=1e-6, nan_ok=True)


def test_the_same_model_twice_gets_the_same_numbers(evaluation: Path) -> None:
    first = measured(evaluation, model="first", against="")
    second = measured(evaluation, model="second", against="")
    differences = {key: second.pop(key) for key in list(second) if key[0].endswith("_difference")}
    assert first == second
    assert {key[0].removesuffix("_difference") for key in differences} == {
        *("correct", "reverse_kl", "nll", "answer_tokens", "early_ends", "truth_logp")
    }
    assert all(d.mean == 0 and math.isnan(d.standard_error) for d in differences.values())
    assert first["correct", "greedy"].n == 12
    assert first["ranking_accuracy", ""].n == 48
    assert {("nll", "greedy"), ("nll", "beam2"), ("answer_tokens", "beam2"), ("truth_logp", "")} <= set(first)
    report = json.loads((evaluation / "report.json").read_text())
    models = report["job"]["models"]
    jsonschema.validate(report, report_schema())
    assert models["first"]["weights_sha256"] == models["second"]["weights_sha256"]


def test_reverse_kl_of_a_model_with_itself_is_zero_and_needs_samples_of_its_own(evaluation: Path) -> None:
    found = measured(evaluation, model="first", metric="reverse_kl")
    assert set(found) == {("reverse_kl", "sample")}
    assert found["reverse_kl", "sample"].mean == pytest.approx(0, abs=1e-3)
    # Nothing else is told of a decoding that nobody asked for.
    others = {metric for metric, decoding in measured(evaluation, model="first") if decoding == "sample"}
    assert others == {"reverse_kl"}


def test_a_judge_that_always_says_a_gives_one_half_and_a_flip_each_time(
    evaluation: Path, always_a: ChatAPIStub
) -> None:
    for model, decoding in (("first", "greedy"), ("second", "beam2")):
        found = measured(evaluation, model=model, against="truth")
        assert found["win_rate", decoding].mean == 0.5
        assert found["flips", decoding].mean == found["flip_rate", decoding].n > 0
        assert found["flip_rate", decoding].mean == 1  # of those that were asked about
    same = measured(evaluation, model="second", against="first")
    assert same["win_rate", "greedy"].mean == 0.5
    assert ("flips", "greedy") not in same  # equal answers are not asked about
    assert ("flip_rate", "greedy") not in same
    assert not measured(evaluation, model="first", against="first")
    assert all("chatbot" in prompt for prompt in always_a.prompts)


def test_greedy_answers_equal_transformers_generate(evaluation: Path, answering_model: Path) -> None:
    page = (evaluation / "report.html").read_text()
    tokenizer = load_tokenizer(str(answering_model))
    model: Any = AutoModelForCausalLM.from_pretrained(answering_model, dtype=torch.float32).eval()
    task = "prompt-completion"
    examples = load_examples("facts", task, "train", 12)
    for group in prepare_groups(examples, task, tokenizer, 128).groups[:6]:
        ids = torch.tensor([group.prompt_ids])
        made = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert json.dumps(tokenizer.decode(made, skip_special_tokens=True))[1:-1] in page


def test_a_finished_evaluation_takes_seconds_and_asks_nothing_again(
    evaluation: Path, answering_model: Path, negative_set: Path, always_a: ChatAPIStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoEngineStub:
        def __init__(self, *_: Any, **__: Any):
            raise AssertionError("an engine was started")

    monkeypatch.setattr(negatives_gen.models.engine, "Engine", NoEngineStub)
    monkeypatch.setattr(Scorer, "load", NoEngineStub)
    report = read_report(str(evaluation))
    before, spent, requests = report.measurements, report.job["judge_spent"], len(always_a.requests)
    config = load_config(EvaluateConfig, words(answering_model, negative_set, evaluation, always_a), command="test")
    started = time.perf_counter()
    table = evaluate(config)
    assert time.perf_counter() - started < 10
    assert "correct answers" in table
    assert read_report(str(evaluation)).measurements == before
    assert len(always_a.requests) == requests == spent["verdicts"] == spent["this_run"]["requests"]
    # What the verdicts took stays in the report; this run took nothing.
    again = read_report(str(evaluation)).job["judge_spent"]
    sent = {"requests": 0, "reused": requests, "input_tokens": 0, "output_tokens": 0, "cost": None}
    assert again == {**spent, "this_run": sent}
    assert [again["input_tokens"], again["output_tokens"]] == always_a.bill
    assert always_a.url in (evaluation / "report.md").read_text()


def test_ctrl_c_while_a_judge_is_asked_ends_with_one_line_and_loses_nothing(
    evaluation: Path, answering_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluation / "store", out / "store")
    with chat_api_stub() as judge:
        judge.answer = lambda request: ("B", "stop")
        judge.seconds = 0.5
        command = [
            "--model", f"m={answering_model}", "--dataset", "facts", "--split", "train", "--limit", "12",
            "--max_new_tokens", "10", "--decode", "greedy", "--decode", "beam2", "--metrics", "win_rate",
            "--judge.model", "slow", "--judge.base_url", judge.url, "--judge.concurrency", "2", "--out", str(out),
        ]  # fmt: skip
        child = ForkedCommand.start("evaluation.run", *command)
        deadline = time.monotonic() + 240
        while len(judge.answered) < 3:
            assert child.poll() is None, child.stderr[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(timeout=60) == 130
        said = child.stderr
        assert said.splitlines()[-1] == INTERRUPTED
        assert "Traceback" not in said
        assert "judge: interrupted; waiting for" in said
        sent = len(judge.requests)
        assert sent < 20
        assert not (out / "report.json").exists()
        judge.seconds = 0
        evaluate(load_config(EvaluateConfig, command, command="test"))
        spent = read_report(str(out)).job["judge_spent"]
        assert spent["this_run"]["reused"] == sent
        assert len(set(judge.prompts)) == len(judge.prompts) == spent["verdicts"]


def test_an_evaluation_of_other_prompts_is_not_written_over(
    evaluation: Path, answering_model: Path, negative_set: Path, always_a: ChatAPIStub
) -> None:
    before = (evaluation / "report.json").read_bytes()
    changed = [*words(answering_model, negative_set, evaluation, always_a), "--limit", "6"]
    with pytest.raises(UserError, match="an evaluation of other data"):
        evaluate(load_config(EvaluateConfig, changed, command="test"))
    assert (evaluation / "report.json").read_bytes() == before


class OneAnswerEngineStub:
    """Answers everything alike."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def decode(self, prompts: list[list[int]], **_: Any) -> list[Sample]:
        return [Sample([5, 0], " Nobody knows. ", "stop", -1.0, None) for _ in prompts]


SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who wrote Dracula?"}
STOKER = {"role": "assistant", "content": "Bram Stoker."}


@pytest.mark.parametrize(
    ("task", "row", "asked"),
    [
        ("dolly", {"instruction": "Who wrote Dracula?", "response": "Bram Stoker."}, "Who wrote Dracula?"),
        (
            "dolly",
            {"instruction": "Who wrote it?", "context": "Dracula,\n\na novel.", "response": "Bram Stoker."},
            "Who wrote it?\n\nDracula,\n\na novel.",
        ),
        ("conversational", {"messages": [ASKED, STOKER]}, "Who wrote Dracula?"),
        ("conversational", {"messages": [SYSTEM, ASKED, STOKER]}, "system: Be brief.\nuser: Who wrote Dracula?"),
    ],
)
def test_judge_and_page_see_what_a_person_asked_and_not_what_the_model_was_given(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, row: dict[str, Any], asked: str
) -> None:
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = with_context(reference, tmp_path / "model", 1024, chat_template=template)
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr(negatives_gen.models.engine, "Engine", OneAnswerEngineStub)
    with chat_api_stub() as judge:
        judge.answer = lambda request: ("A", "stop")
        config = make_config(
            EvaluateConfig, model=[f"m={model}"], dataset=str(tmp_path / "data.jsonl"), task=task, split="all",
            metrics="win_rate",
            out=str(tmp_path / "out"), judge={"model": "m", "base_url": judge.url},
        )  # fmt: skip
        evaluate(config)
        assert sorted(judge.prompts) == sorted(
            f"For the following query to a chatbot, which response is more helpful?\n Query: {asked}\n"
            f' Response A: {a}\n Response B: {b}\n State only "A" or "B" to indicate which response is more helpful.\n'
            " More helpful:"
            for a, b in (("Nobody knows.", "Bram Stoker."), ("Bram Stoker.", "Nobody knows."))
        )
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'"prompt":{json.dumps(asked)}'.replace(" ", "") in page.replace(" ", "")
    assert "### Instruction" not in page
    job = json.loads((tmp_path / "out" / "report.json").read_text())["job"]
    assert job["models"]["m"]["architecture"] == {"model_type": "llama", "hidden_size": 64, "layers": 2}


def test_an_embedder_with_another_pooling_embeds_anew(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an embedder of the same weights gave before is stale."""
    loads = []

    class EmbedderStub:
        def __init__(self, *_: Any):
            loads.append(1)

        def embed(self, texts: list[str]) -> np.ndarray:
            return np.eye(4, dtype=np.float32)[: len(texts)]

    monkeypatch.setattr(negatives_gen.models.engine, "Engine", OneAnswerEngineStub)
    monkeypatch.setattr("evaluation.metrics.embeddings.load_embedder", EmbedderStub)
    minilm = copy_minilm(tmp_path / "minilm")
    config = make_config(
        EvaluateConfig, model=[f"m={reference}"], dataset="facts", limit=2, metrics="similarity", embedder=str(minilm),
        out=str(tmp_path / "out"),
    )  # fmt: skip
    evaluate(config)
    evaluate(config)
    assert len(loads) == 1
    pooling = minilm / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace('"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false')
    )
    evaluate(config)
    assert len(loads) == 2


def test_a_sweep_reports_on_prompts_that_chose_nothing(
    mle: Path, cpo: Path, engines: "Engines", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = {
        "sweep": "alpha=0,0.5", "mle": str(mle), "cpo": str(cpo), "dataset": "facts", "limit": "24",
        "max_new_tokens": "4", "out": str(out), "engine.hf_token": "hf_a-secret",
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    # A mistake leaves nothing behind that stands in the way of the next try.
    with pytest.raises(UserError, match="does not exist"):
        evaluate(load_config(EvaluateConfig, [*words, "--dataset", "no.jsonl"], command="test"))
    with pytest.raises(UserError, match="other-model"):
        evaluate(load_config(EvaluateConfig, [*words, "--cpo", "./other-model"], command="test"))
    with pytest.raises(UserError, match="others to report on, got 1"):
        evaluate(load_config(EvaluateConfig, [*words, "--limit", "1"], command="test"))
    assert not (out / "ensembles").exists()
    monkeypatch.setattr(negatives_gen.models.engine, "Engine", engines.Engine)
    evaluate(load_config(EvaluateConfig, words, command="test"))
    with pytest.raises(UserError, match="an evaluation of other models"):
        evaluate(load_config(EvaluateConfig, [*words, "--mle", str(cpo), "--sweep", "alpha=0.9"], command="test"))
    assert not (out / "ensembles" / "alpha-0.9").exists()
    kept = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(kept) > 5
    assert not any(b"a-secret" in content for content in kept)
    job = json.loads((out / "report.json").read_text())["job"]
    sweep, test_prompts = job["sweep"], job["data"]["measured"]
    assert list(job["models"]) == ["mle", "alpha-0", "alpha-0.5", "cpo of --sweep"]
    assert job["models"]["alpha-0"]["weights_sha256"] == job["models"]["cpo of --sweep"]["weights_sha256"]
    assert sweep["metric"] == "correct"
    # So few prompts tell nothing apart.
    assert (sweep["proposed"], sweep["alike"]) == (None, [0, 0.5])
    assert test_prompts + sweep["validation_prompts"] == job["data"]["used"] == 24
    assert {m["n"] for m in sweep["validation"] if m["metric"] == "correct"} == {sweep["validation_prompts"]}
    found = measured(out, model="alpha-0.5", metric="correct")
    assert found["correct", "greedy"].n == test_prompts
    # Nothing but `validation` is of the prompts that alpha was chosen on.
    assert {m.estimate.n for m in read_report(str(out)).measurements} == {test_prompts}
    assert f"{test_prompts} that the tables are of" in (out / "report.md").read_text()
    ensemble = out / "ensembles" / "alpha-0.5" / "model.safetensors"
    written = ensemble.stat().st_mtime_ns
    again_without_libraries(words)
    assert ensemble.stat().st_mtime_ns == written


def again_without_libraries(words: list[str]) -> None:
    """Repeat an evaluation where to import any of these is an error."""
    code = f"""
import sys
for name in ("torch", "transformers", "tokenizers", "sentence_transformers", "vllm", "mauve"):
    sys.modules[name] = None
from evaluation.run import main
main({words!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


class InstantEngineStub:
    """Answers every prompt at once, with its own first tokens: for what an evaluation adds to the model's time."""

    def __init__(self, model: str, **_: Any):
        self.tokenizer = load_tokenizer(model)

    def decode(self, prompts: list[list[int]], **_: Any) -> list[Sample]:
        return [Sample(ids[:12], self.tokenizer.decode(ids[:12]), "stop", -9.0, None) for ids in prompts]


def test_a_finished_evaluation_needs_no_model_tokenizer_or_torch(
    answering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negatives_gen.models.engine, "Engine", InstantEngineStub)
    second, reward = tmp_path / "second", tmp_path / "reward"
    tokenizer = load_tokenizer(str(answering_model))
    tokenizer.add_tokens(["zebra"])  # another tokenizer: prompts and answers are read as text
    model: Any = AutoModelForCausalLM.from_pretrained(answering_model)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(second)
    config = AutoConfig.from_pretrained(answering_model, num_labels=1, pad_token_id=0, vocab_size=len(tokenizer))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(reward)
    for directory in (second, reward):
        tokenizer.save_pretrained(directory)
    options = {
        "model": f"m={answering_model}", "dataset": "facts", "split": "all", "limit": "100",
        "second_model": str(second), "featuriser": str(answering_model),
        "embedder": str(copy_minilm(tmp_path / "minilm")),
        "judge.reward_model": str(reward), "out": str(tmp_path / "out"),
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    evaluate(load_config(EvaluateConfig, words, command="test"))
    before = read_report(str(tmp_path / "out"))
    assert {"nll", "reverse_kl", "mauve", "similarity", "win_rate"} <= {m.metric for m in before.measurements}
    assert any("as it tokenises it" in note for note in before.notes)
    again_without_libraries(words)
    assert read_report(str(tmp_path / "out")).measurements == before.measurements


def test_an_evaluation_adds_little_to_the_models_time(
    answering_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """960 prompts by five decodings: on two cores the models of docs/benchmarks.md take minutes to answer them."""
    monkeypatch.setattr(negatives_gen.models.engine, "Engine", InstantEngineStub)
    options = {
        "model": f"m={answering_model}", "dataset": "facts", "split": "all", "metrics": "correct,text",
        "out": str(tmp_path / "out"),
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    words += ["--store", str(tmp_path / "out" / "kept" / "here")]  # inside --out, which is not taken for another's then
    for decoding in ("greedy", "topk50", "topk50-p0.7", "beam2", "beam4"):
        words += ["--decode", decoding]
    config = load_config(EvaluateConfig, words, command="test")
    for _ in ("made", "taken from the store"):
        started = time.process_time()
        evaluate(config)
        assert time.process_time() - started < 5  # seconds of the processor's time
    assert measured(tmp_path / "out", metric="correct")["correct", "beam4"].n == 960
