"""A cluster that is not there is refused within half a minute. Without Ray, but for its import."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

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


@pytest.fixture
def last_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` says where the cluster of this machine is, and a killed head leaves it said."""
    import ray
    from ray._private import services, utils

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(services, "find_gcs_addresses", set)  # none runs on this machine
    monkeypatch.setattr(services, "resolve_ip_for_localhost", lambda host: host)
    monkeypatch.setattr(utils, "get_ray_address_file", lambda _: str(tmp_path / "ray_current_cluster"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    return tmp_path / "ray_current_cluster"


def test_a_dead_cluster_that_ray_finds_itself_is_one_line(last_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    last_cluster.write_text(f"{address}\n")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked, which tries for a quarter of an hour"))
    with pytest.raises(UserError) as caught:
        start_ray()
    assert str(caught.value) == (
        f"Ray cluster 'auto' ({address}) cannot be joined: [Errno 111] Connection refused. Check $RAY_ADDRESS."
    )


def test_no_cluster_that_ray_finds_itself_is_one_line(last_cluster: Path) -> None:
    assert not last_cluster.exists()
    with pytest.raises(UserError, match="Ray cluster 'auto' cannot be joined: Could not find any running Ray instance"):
        start_ray()


def test_a_cluster_that_ray_finds_itself_is_joined(
    last_cluster: Path, listening: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    joined: list[str] = []
    last_cluster.write_text(listening(SETTINGS))
    monkeypatch.setattr(ray, "init", lambda address, **_: joined.append(address))
    start_ray()
    assert joined == ["auto"]


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
