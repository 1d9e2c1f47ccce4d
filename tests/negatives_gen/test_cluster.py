"""A cluster that is not there is refused within half a minute. Without Ray, but for its import."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from data.command.errors import UserError
from negatives_gen.job import cluster
from negatives_gen.job.cluster import require_answer, start_ray

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def listening() -> Iterator[Callable[[bytes], str]]:
    """Opens a port that says so much to whoever connects, and no more."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        connections = []

        def open_port(answer: bytes) -> str:
            def serve() -> None:
                connection, _ = server.accept()
                connections.append(connection)
                connection.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield open_port
        for connection in connections:
            connection.close()


def test_the_limits_of_time_are_half_a_minute_together() -> None:
    assert cluster.CONNECT_SECONDS + cluster.ANSWER_SECONDS < 30


def test_a_dead_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        start_ray()
    assert str(caught.value) == (
        f"Ray cluster '{address}' cannot be joined: [Errno 111] Connection refused. Check $RAY_ADDRESS."
    )


def test_a_cluster_that_hangs_is_refused(listening: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    with pytest.raises(TimeoutError):
        require_answer(listening(b""))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2p1\r\n"])
def test_a_server_that_is_no_ray_is_refused(listening: Callable[[bytes], str], answer: bytes) -> None:
    with pytest.raises(OSError, match="what listens there is no Ray"):
        require_answer(listening(answer))


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_server_that_speaks_grpc_is_taken(listening: Callable[[bytes], str], form: str) -> None:
    require_answer(form.format(listening(SETTINGS)))


def test_what_is_no_address_is_left_to_ray() -> None:
    for address in ("auto", "local", ""):
        require_answer(address)
