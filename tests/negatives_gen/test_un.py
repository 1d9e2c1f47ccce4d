"""UN: against a real `vllm serve`, and against a local server that has every fault an API can have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.command.entries import undecided
from data.command.errors import UserError
from data.command.options import make_config
from data.command.privacy import without_secrets
from data.schema import Group
from data.sources.prepare import prepare_groups
from negatives_gen.config import GenerateConfig
from negatives_gen.job.job import generate, make_writer
from negatives_gen.strategies import STRATEGIES
from negatives_gen.strategies.base import MAX_ROUNDS, Tools
from negatives_gen.strategies.un import TEMPLATE
from tests.support.chat_server import ChatAPIStub, free_port, said
from tests.support.read_examples import load_examples
from tests.support.tiny import with_context
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.seconds

UN = STRATEGIES.load("un")
TASK = "prompt-completion"
KEY = "sk-a-secret-of-the-tests"


def settings(count: int = 2, **api: Any) -> dict[str, Any]:
    config = make_config(
        GenerateConfig, model="m", dataset="facts", out="o", strategies=f"un={count}", api={"model": "m", **api}
    )
    return config.strategy_settings()["un"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def groups(tokenizer: Any) -> list[Group]:
    return questions(tokenizer, 4)


def questions(tokenizer: Any, number: int) -> list[Group]:
    return list(prepare_groups(load_examples("facts", TASK, "train", number), TASK, tokenizer, 128).groups)


# --- settings ---


def test_settings_say_what_decides_the_negatives_and_keep_the_rest_apart() -> None:
    assert settings(3, base_url="http://user:pass@host:8000/v1/", timeout=9) == {
        "count": 3,
        "max_new_tokens": 256,
        "api": {
            "model": "m",
            "base_url": "http://user:pass@host:8000/v1",
            "temperature": 1.0,
            "concurrency": 16,
            "timeout": 9,
            "retries": 5,
        },
    }
    assert settings()["api"]["base_url"] == "https://api.openai.com/v1"
    with_password = settings(base_url="https://user:p@ss@host/v1")
    assert with_password["api"]["base_url"] == "https://user:p%40ss@host/v1"
    assert without_secrets(with_password)["api"]["base_url"] == "https://host/v1"
    assert settings(max_tokens=9)["max_new_tokens"] == 9
    assert undecided(UN.Options) == ["api.base_url", "api.concurrency", "api.timeout", "api.retries"]


@pytest.mark.parametrize(
    ("api", "message"),
    [
        ({"model": None}, "needs --api.model"),
        ({"modle": "x"}, "unknown key 'api.modle'.* Did you mean 'api.model'"),
        ({"api_key": KEY}, r"--api.api_key is not an option: the key comes from \$OPENAI_API_KEY only"),
        ({"token": KEY}, r"the key comes from \$OPENAI_API_KEY only"),
        ({"base_url": "localhost:8000/v1"}, "must be an address such as http://localhost:8000/v1"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "with nothing behind it"),
        ({"base_url": "http://["}, "must be an address"),
        ({"temperature": -0.1}, "--api.temperature must be a number, 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "api.temperature.* must be a number"),
        ({"max_tokens": 0}, "--api.max_tokens must be a whole number, 1 or more, got 0"),
        ({"concurrency": 2.5}, "'api.concurrency' .* must be a whole number"),
        ({"timeout": "soon"}, "'api.timeout' .* must be a number"),
        ({"retries": True}, "'api.retries' .* must be a whole number"),
    ],
)
def test_a_bad_option_is_refused_in_one_line_without_its_secret(api: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settings(**api)
    assert KEY not in str(caught.value)


def test_openai_itself_needs_a_key_and_another_server_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    for url in ("https://api.openai.com/v1", "https://api.openai.com/v1/"):
        with pytest.raises(UserError, match=r"\$OPENAI_API_KEY is not set. Set it"):
            settings(base_url=url)
    settings(base_url="http://localhost:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-“quoted”")
    with pytest.raises(UserError, match="holds characters that no key can have"):
        settings()


def test_concurrency_timeout_and_retries_make_no_other_job(tmp_path: Path) -> None:
    def begin(**api: Any) -> bool:
        job = {"strategies": {"un": settings(**api)}}
        writer = make_writer(str(tmp_path / "set"), job, ["embedding"])
        try:
            return writer.begin()
        finally:
            writer.end()

    assert begin()
    assert begin(concurrency=1, timeout=1, retries=0)
    with pytest.raises(UserError, match=r"strategies.un.api.temperature"):
        begin(temperature=0.5)


# --- faults, by a local server ---


@pytest.fixture
def ask(server: ChatAPIStub, tokenizer: Any) -> Callable[..., dict[str, str]]:
    def add(groups: list[Group], count: int = 2, context: int = 128, seed: int = 0, **api: Any) -> dict[str, str]:
        api = {"base_url": server.url, "timeout": 5, "retries": 2, **api}
        return UN.add(groups, groups, settings(count, **api), Tools(seed, context, tokenizer))

    return add


def texts(group: Group) -> list[str]:
    return [candidate.text for candidate in group.negatives]


def test_every_request_is_the_papers_template_and_the_settings(
    ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    assert ask(groups, temperature=0.7, max_tokens=33) == {}
    expected = [
        "Given the ground truth instruction and response, can you generate a not helpful response?\n Instruction: "
        + group.prompt
        + "\nResponse: "
        + group.response
        + "\nNot helpful response:"
        for group in groups
        for _ in range(2)
    ]
    assert sorted(server.prompts) == sorted(expected)
    for request in server.requests:
        assert [message["role"] for message in request["messages"]] == ["user"]
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.7, 33)
    assert server.keys == {f"Bearer {KEY}"}
    assert len({request["seed"] for request in server.requests}) == 8


def test_the_instruction_is_what_people_asked_and_not_what_a_template_wrote(
    ask: Callable, server: ChatAPIStub, groups: list[Group], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}{{ m['content'] }} {% endfor %}")
    asked = {"role": "user", "content": "Who?"}
    groups[0].messages, groups[0].query = [asked], "Who?"
    groups[1].messages, groups[1].query = [{"role": "system", "content": "Be brief."}, asked], "Be brief. Who?"
    assert ask(groups[:2]) == {}
    instructions = {prompt.split("Instruction: ")[1].split("\nResponse:")[0] for prompt in server.prompts}
    assert instructions == {"Who?", "Be brief. Who?"}


def test_the_instruction_of_a_dolly_row_is_the_data_sets_and_not_the_training_prompt(
    server: ChatAPIStub, reference: Path, tmp_path: Path
) -> None:
    """By the whole job: the row is read by the task, and goes through the staged inputs."""
    rows = [
        {"instruction": "Who wrote Dracula?", "context": "", "response": "Bram Stoker."},
        {"instruction": "Name it.", "context": "A cat.", "response": "Cat"},
    ]
    (tmp_path / "dolly.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = with_context(reference, tmp_path / "model", 1024)
    config = make_config(
            GenerateConfig,
        model=str(model), dataset=str(tmp_path / "dolly.jsonl"), task="dolly",
        split="all", out=str(tmp_path / "set"), strategies="un=1", embedder="reference",
        api={"model": "m", "base_url": server.url},
    )  # fmt: skip
    with without_ray():
        generate(config)
    assert set(server.prompts) == {
        TEMPLATE.format("Who wrote Dracula?", "Bram Stoker."), TEMPLATE.format("Name it.\n\nA cat.", "Cat")
    }  # fmt: skip


def test_a_server_without_keys_is_sent_none(
    ask: Callable, server: ChatAPIStub, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(groups[:1]) == {}
    assert server.keys == {"Bearer EMPTY"}


def test_an_answer_becomes_tokens_that_look_like_the_ground_truth(
    ask: Callable, server: ChatAPIStub, groups: list[Group], tokenizer: Any
) -> None:
    server.answer = lambda request: ("\n No idea, ask Otto. \n", "stop")
    assert groups[0].response.startswith(" ")
    assert ask(groups[:1], count=1) == {}
    (candidate,) = groups[0].negatives
    expected = tokenizer(" No idea, ask Otto.", add_special_tokens=False)["input_ids"]
    assert candidate.ids == [*expected, tokenizer.eos_token_id]
    assert (candidate.strategy, candidate.text, candidate.finish_reason) == ("un", " No idea, ask Otto.", "stop")
    assert candidate.seed == server.requests[0]["seed"]
    assert (candidate.sampler_logp, candidate.source_id, candidate.reference_logp) == (None, None, None)


@pytest.mark.parametrize(("room", "reason"), [(0, "length"), (1, "stop")])
def test_eos_only_if_the_model_had_finished_and_it_fits(
    ask: Callable, server: ChatAPIStub, groups: list[Group], tokenizer: Any, room: int, reason: str
) -> None:
    """An answer as long as the room has no place for EOS; one token more room, and it has."""
    server.answer = lambda request: ("No idea, ask Otto.", "stop")
    ids = tokenizer(" No idea, ask Otto.", add_special_tokens=False)["input_ids"]
    assert ask(groups[:1], count=1, context=len(groups[0].prompt_ids) + len(ids) + room) == {}
    (candidate,) = groups[0].negatives
    assert candidate.ids == ids + [tokenizer.eos_token_id] * room
    assert candidate.finish_reason == reason


def test_an_answer_is_cut_to_the_room_left_and_its_text_with_it(
    ask: Callable, server: ChatAPIStub, groups: list[Group], tokenizer: Any
) -> None:
    server.answer = lambda request: ("No idea, ask Otto.", "stop")
    ids = tokenizer(" No idea, ask Otto.", add_special_tokens=False)["input_ids"]
    assert ask(groups[:1], count=1, context=len(groups[0].prompt_ids) + 3) == {}
    (candidate,) = groups[0].negatives
    assert (candidate.ids, candidate.finish_reason) == (ids[:3], "length")
    assert candidate.text == tokenizer.decode(ids[:3])


def test_an_answer_that_the_api_cut_has_no_eos(
    ask: Callable, server: ChatAPIStub, groups: list[Group], tokenizer: Any
) -> None:
    server.answer = lambda request: ("No idea, ask", "length")
    assert ask(groups[:1], count=1) == {}
    (candidate,) = groups[0].negatives
    assert candidate.ids == tokenizer(" No idea, ask", add_special_tokens=False)["input_ids"]
    assert candidate.finish_reason == "length"


def test_useless_answers_are_asked_again_with_another_seed(
    ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    truth = groups[0].response
    script = iter(
        [
            ("Yes.", "stop"),
            (" Yes. ", "stop"),  # repeated
            (truth.strip(), "stop"),
            ("", "stop"),
            (None, "stop"),
            ("End<|endoftext|>", "stop"),  # a special token written out
            ("Half", "content_filter"),
            ("No \ud83d.", "stop"),  # half a surrogate pair
        ]
    )
    server.answer = lambda request: next(script)
    assert ask(groups[:1], count=2, concurrency=1) == {}
    assert texts(groups[0]) == [" Yes.", " No ?."]
    assert len({request["seed"] for request in server.requests}) == len(server.requests) == 8


def test_a_group_that_stays_short_is_given_up_and_the_others_are_served(
    ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    server.answer = lambda r: ("Always this." if groups[0].prompt in said(r) else f"Answer {r['seed']}.", "stop")
    assert ask(groups[:2], count=3) == {
        groups[0].id: f"1 of 3 distinct answers after {MAX_ROUNDS} rounds; of the others "
        f"{2 * MAX_ROUNDS} repeated or the ground truth"
    }
    assert len(set(texts(groups[1]))) == 3
    assert len(server.requests) == 3 + 3 + 2 * (MAX_ROUNDS - 1)


def test_a_group_without_an_answer_says_what_its_answers_were(
    ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    script = iter([("", "stop"), (None, "content_filter"), ("a<|endoftext|>", "stop"), (" ", "length")] * 9)
    server.answer = lambda request: next(script) if groups[0].prompt in said(request) else ("Fine.", "stop")
    assert MAX_ROUNDS == 8
    assert ask(groups[:2], count=1, concurrency=1) == {
        groups[0].id: "0 of 1 distinct answers after 8 rounds; of the others 4 empty, 2 ended by 'content_filter', "
        "2 special token in response"
    }


def test_the_first_of_more_answers_are_those_of_fewer(ask: Callable, tokenizer: Any) -> None:
    """The stub's answers depend on the seed alone, as an API's should."""
    two, five, grown, other = (questions(tokenizer, 3) for _ in range(4))
    ask(two, count=2)
    ask(five, count=5)
    ask(grown, count=2)
    ask(grown, count=5, concurrency=1)
    ask(other, count=5, seed=1)
    for i in range(3):
        assert texts(five[i])[:2] == texts(two[i])
        assert five[i].negatives == grown[i].negatives
        assert not set(texts(five[i])) & set(texts(other[i]))


def test_no_more_requests_are_under_way_than_allowed(ask: Callable, server: ChatAPIStub, groups: list[Group]) -> None:
    server.seconds = 0.05
    server.faults = [(500, {}, "")] * 3
    assert ask(groups, count=4, concurrency=3) == {}
    assert server.most_in_flight == 3
    assert len(server.requests) == 16 + 3


def test_429_is_tried_again_when_the_server_says(ask: Callable, server: ChatAPIStub, groups: list[Group]) -> None:
    server.faults = [(429, {"Retry-After": "1.2"}, {"error": {"message": "slow down"}})]
    assert ask(groups[:1], count=1) == {}
    assert server.times[1] - server.times[0] >= 1.2
    assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize("fault", [(500, {}, "down"), (503, {}, "down"), 2.0], ids=str)
def test_5xx_and_time_outs_are_tried_again(
    ask: Callable, server: ChatAPIStub, groups: list[Group], fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.chat.client.random.uniform", lambda least, most: most)
    server.faults = [fault]
    assert ask(groups[:1], count=1, timeout=0.8) == {}
    assert len(server.requests) == 2
    assert server.times[1] - server.times[0] > 0.3  # after a pause


LEAK = {"error": {"message": f"Wrong key {KEY}, look."}}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((401, {}, LEAK), r"refuses the key \(401\). Set \$OPENAI_API_KEY"),
        ((403, {}, LEAK), r"refuses the key \(403\)"),
        ((404, {}, LEAK), r"has no chat model 'm' \(404: Wrong key \*\*\*, look\). Check --api.model"),
        ((400, {}, LEAK), r"every request for a bad one \(Wrong key \*\*\*, look\). Check the --api options"),
        ((418, {}, LEAK), r"refuses the request \(418: Wrong key \*\*\*"),
        ((429, {}, LEAK), r"still has its rate limit or quota exceeded after 1 retry .* Lower --api.concurrency"),
        ((500, {}, "<html>\nbroken</html>"), r"still fails after 1 retry \(500"),
        ((200, {"Content-Type": "text/html"}, "<html>hello</html>"), "is no chat completion. Check --api.base_url"),
        ((200, {}, {"error": {"message": "no"}}), "is no chat completion"),
        ((200, {}, "{not json"), "cannot be read"),
        (1.5, r"gave no answer within 0.3 s after 1 retry. Raise --api.timeout"),
    ],
)
def test_a_fault_that_retries_do_not_pass_ends_the_job_in_one_line_without_the_key(
    ask: Callable, server: ChatAPIStub, groups: list[Group], fault: Any, message: str
) -> None:
    server.faults = [fault] * 2
    with pytest.raises(UserError, match=message) as caught:
        ask(groups[:1], count=1, retries=1, timeout=0.3)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert server.url in str(caught.value)


def test_a_closed_port_says_where_nobody_answers(ask: Callable, groups: list[Group]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=f"{url} cannot be reached after 1 retry. Check --api.base_url"):
        ask(groups[:1], base_url=url, retries=1)


@pytest.mark.parametrize("text", ["", " \n", None])
def test_an_api_that_says_nothing_to_a_whole_shard_is_an_error_and_no_rejects(
    text: str | None, ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    server.answer = lambda request: (text, "stop")
    with pytest.raises(UserError, match="answered every request of a shard without a word"):
        ask(groups)
    server.answer = lambda request: (text or "", "content_filter")
    assert len(ask(groups)) == len(groups)


def test_a_prompt_that_the_api_refuses_is_that_rows_matter(
    ask: Callable, server: ChatAPIStub, groups: list[Group]
) -> None:
    server.refuse = lambda request: groups[0].prompt in said(request)
    assert ask(groups[:2]) == {groups[0].id: "0 of 2: the API refuses the request: This is too long"}
    assert len(groups[1].negatives) == 2
    assert len(server.requests) == 4  # not asked again


# --- a real server ---


def test_vllm_serves_every_group_distinct_candidates(vllm_url: str, tokenizer: Any) -> None:
    rows = questions(tokenizer, 12)
    context = 128
    asked = settings(3, model="tiny", base_url=vllm_url, max_tokens=200)
    assert UN.add(rows, rows, asked, Tools(0, context, tokenizer)) == {}
    reasons = set()
    for row in rows:
        assert len({*texts(row), row.response}) == 4
        for candidate in row.negatives:
            ended = candidate.ids[-1] == tokenizer.eos_token_id
            assert ended == (candidate.finish_reason == "stop")
            assert tokenizer.eos_token_id not in candidate.ids[:-1]
            assert len(row.prompt_ids) + len(candidate.ids) <= context
            assert candidate.text == tokenizer.decode(candidate.ids, skip_special_tokens=True)
            assert candidate.text.startswith(" ")
            reasons.add(candidate.finish_reason)
    assert reasons == {"stop", "length"}


def test_vllm_refuses_what_is_too_long_for_it_in_words(vllm_url: str, tokenizer: Any) -> None:
    rows = questions(tokenizer, 2)
    rows[0].query = rows[0].query * 40
    asked = settings(1, model="tiny", base_url=vllm_url, max_tokens=20)
    (reason,) = UN.add(rows, rows, asked, Tools(0, 128, tokenizer)).values()
    assert reason.startswith("0 of 1: the API refuses the request: ")
    assert "maximum context length is 512 tokens" in reason
    assert len(rows[1].negatives) == 1


def test_vllm_knows_no_other_model(vllm_url: str, tokenizer: Any) -> None:
    rows = questions(tokenizer, 1)
    with pytest.raises(UserError, match=r"has no chat model 'other' \(404: .*`other` does not exist"):
        UN.add(rows, rows, settings(1, model="other", base_url=vllm_url), Tools(0, 128, tokenizer))
