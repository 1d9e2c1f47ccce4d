"""Shared fixtures: what takes long to make is made once per test session."""

import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch and vLLM are imported: no hub, one thread (the suite's models are tiny), a small key-value cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")
# readline leaves it to the workers of a test run, and tables are as wide as it says.
os.environ.pop("COLUMNS", None)
# Nothing is reported of tests, which would take an actor of Ray's.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# trackio reads it once, when whatever imports it does.
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))

import pytest

from tests.support.commands import CONTEXT, preload_vllm

if TYPE_CHECKING:
    from tests.support.answering import DrawingEngine, Engines
    from tests.support.chat_server import ChatAPIStub
    from tests.support.ray_cluster import RayCluster

# Until the tests are collected: what is imported stays, so there is nothing to find.
gc.disable()

# What costs most comes first, or it would run alone at the end.
ORDER = ("ray", "vllm", "end_to_end", "trainer", "evaluation", "negatives_gen")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Why a test is skipped that has no browser; where $REQUIRE_BROWSER is set, as in CI, it fails.
NO_BROWSER = "the HTML pages are not tested in a browser: "


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly at the end that no browser was there: skips are one letter among thousands of dots."""
    skipped = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    reasons = [reason for reason in skipped if NO_BROWSER in reason]
    if reasons:
        said = f"{len(reasons)} tests SKIPPED: {reasons[0].removeprefix('Skipped: ')}"
        terminalreporter.write_sep("!", said, red=True, bold=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a worker of pytest-xdist: those that share an engine, a cluster, or the fixtures of a file."""

    def group(item: pytest.Item) -> str:
        expensive = [name for name in ("ray", "vllm") if item.get_closest_marker(name)]
        return expensive[0] if expensive else str(item.path.relative_to(Path(__file__).parent))

    def place(item: pytest.Item) -> int:
        name = group(item).split("/")[0]
        return ORDER.index(name) if name in ORDER else len(ORDER)

    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & {"engines", "vllm_url"}:
            item.add_marker("vllm")
        if "cluster" in fixtures:
            item.add_marker("ray")
        if "browser" in fixtures:
            item.add_marker("seconds")
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The process that meets a test of vLLM first forks what it needs from a server that has imported vLLM."""
    if item.get_closest_marker("vllm"):
        preload_vllm()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to start engines and clusters once per worker: groups that have an effect stand in the tests' ids."""
    gc.freeze()  # modules and tests stay: no collection need go through them
    gc.enable()
    # Tests write one module several times within a second; Python would take it from the bytecode of the first time.
    sys.dont_write_bytecode = True
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        pytest.exit(
            "pytest-xdist does not group the tests with this pytest: see extra dev in pyproject.toml", returncode=2
        )


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reference model over the embedded world's vocabulary."""
    from tests.support.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "reference")


@pytest.fixture(scope="session")
def negative_set(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A negative set of 48 groups, K = 4, scored by the reference; its negatives are other rows' words shuffled."""
    from tests.support.tiny import make_negative_set

    out = tmp_path_factory.mktemp("sets") / "negatives"
    make_negative_set(out, reference, num_groups=48, num_negatives=3)
    return out


@pytest.fixture(scope="session")
def mle(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of weight alpha of an ensemble."""
    from tests.support.ensembles import make_model

    return make_model(tmp_path_factory.mktemp("mle") / "mle", reference, seed=1)


@pytest.fixture(scope="session")
def cpo(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of weight 1 - alpha of an ensemble."""
    from tests.support.ensembles import make_model

    return make_model(tmp_path_factory.mktemp("cpo") / "cpo", reference, seed=2)


@pytest.fixture(scope="session")
def answering_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model over the embedded world's vocabulary whose answers end."""
    from tests.support.answering import save_answering_model

    return save_answering_model(tmp_path_factory.mktemp("models") / "answering")


@pytest.fixture(scope="session")
def engines() -> Iterator["Engines"]:
    """A process that has imported vLLM: `engines.Engine(model)` starts a real engine in 3 s instead of a minute."""
    from tests.support.answering import Engines

    with Engines(ctx=CONTEXT) as engines:
        yield engines


@pytest.fixture(scope="session")
def engine(engines: "Engines", answering_model: Path) -> "DrawingEngine":
    """The session's real vLLM engine, of `answering_model`."""
    return engines.Engine(str(answering_model))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["RayCluster"]:
    """A Ray cluster of one core; relative paths of its jobs count from `cluster.root`."""
    from tests.support.ray_cluster import RayCluster

    with RayCluster(num_cpus=1, root=tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `vllm serve` whose model is named "tiny"."""
    from tests.support.chat_server import vllm_serve

    with vllm_serve(tmp_path_factory.mktemp("chat")) as url:
        yield url


@pytest.fixture(scope="session")
def trackio_folder() -> Path:
    """Where trackio keeps the session's runs."""
    return Path(os.environ["TRACKIO_DIR"])


@pytest.fixture
def server() -> Iterator["ChatAPIStub"]:
    """A local server of a chat API, whose answers and faults a test chooses."""
    from tests.support.chat_server import chat_api_stub

    with chat_api_stub() as stub:
        yield stub


@pytest.fixture(scope="module")
def tokenizer(reference: Path) -> Any:
    """The tokenizer of `reference`."""
    from data.models import load_tokenizer

    return load_tokenizer(str(reference))


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """A copy of MiniLM that a test may change."""
    from tests.support.tiny import copy_minilm

    return copy_minilm(tmp_path / "minilm")


# A module long: while it is open an event loop is running, and tests with a loop of their own could not start it.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    give_up = pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        give_up(f"{NO_BROWSER}no Chromium here: apt-get install chromium")
    for module in ("playwright", "axe_core_python"):
        if importlib.util.find_spec(module) is None:
            give_up(f"{NO_BROWSER}no {module} here: pip install {module.replace('_', '-')}")
    from playwright import sync_api as playwright

    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
