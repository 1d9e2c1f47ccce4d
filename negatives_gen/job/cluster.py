"""Joining a Ray cluster, or starting Ray in this process; what cannot be joined is said within half a minute."""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from data.command.errors import UserError, first_line
from data.command.privacy import is_secret_variable

log = logging.getLogger(__name__)

# gRPC's greeting, and an empty frame of settings: what a client of HTTP/2 says first.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
CONNECT_SECONDS = 8.0
ANSWER_SECONDS = 20.0


@contextmanager
def ray_started() -> Iterator[None]:
    """Ray, joined or started as `start_ray` does; who has started it ends it, as its workers print till then."""
    import ray

    was_there = ray.is_initialized()
    start_ray()
    try:
        yield
    finally:
        if not was_there:
            ray.shutdown()


def start_ray() -> None:
    """Join the cluster of the job or of $RAY_ADDRESS, else start Ray in this process.

    Raises:
        UserError: there is no such cluster, or Ray does not come up.
    """
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    named = f"'{address}'"
    log.info("%s", f"joining Ray cluster {named}" if address else "starting Ray on this machine")
    try:
        if address:  # the cluster and `ray job submit` decide the workers' environment
            found = _found(address)
            named += f" ({found})" if found != address else ""
            require_answer(found)
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            _start_local_ray()
    except Exception as error:  # Ray raises bare Exceptions here, for one where a start takes over 30 s
        where = f"Ray cluster {named} cannot be joined" if address else "Ray did not start on this machine"
        raise UserError(
            f"{where}: {first_line(error).rstrip('.')}. "
            + ("Check $RAY_ADDRESS." if address else "It may be too busy: run the same command again.")
        ) from error


def require_answer(address: str) -> None:
    """Raise OSError if nothing at the address of a cluster speaks gRPC; Ray itself would try for a quarter of an hour.

    Args:
        address: host:port, or ray://host:port; others are Ray's to understand.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)/?", address)
    if not match:
        return
    with socket.create_connection((match.group(1), int(match.group(2))), timeout=CONNECT_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "", "false"):
            return
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(GREETING)
        answer = connection.recv(9, socket.MSG_WAITALL)
        if len(answer) < 9 or answer[3] != SETTINGS:
            raise OSError("what listens there is no Ray")


def _found(address: str) -> str:
    """The address that Ray makes of "auto", where a cluster ran last that was started on this machine; others as given.

    Raises ConnectionError if there was none.
    """
    if address != "auto":
        return address
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(address) or address


def worker_variables(environ: Mapping[str, str], import_path: Sequence[str]) -> dict[str, str]:
    """What a worker of Ray on this machine is given beside what it inherits.

    Ray keeps its import path, and some of its environment, apart from the driver's unless told. It writes what it is
    told into a log that everyone can read, so keys are left to inheritance.
    """
    prefixes = ("VLLM_", "HF_", "TORCH_COMPILE", "OMP_NUM", "TQDM_")
    passed = {k: v for k, v in environ.items() if k.startswith(prefixes) and not is_secret_variable(k, v)}
    return {**passed, "PYTHONPATH": os.pathsep.join(p for p in import_path if p) or "."}


def _start_local_ray() -> None:
    import ray

    # Ray starts its workers at niceness 15; on a machine that does anything else they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        runtime_env={"env_vars": worker_variables(os.environ, sys.path)},
        include_dashboard=False,
        logging_level=logging.WARNING,
    )
