"""What we tell vLLM, on CPUs and on GPUs, against the argument classes of the installed vLLM. No model is loaded."""

import contextlib
import re
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest import mock

import pytest

from data.models import ADAPTER
from negatives_gen.job.memory import SLOTS
from negatives_gen.job.pipeline import CPU_SLOTS, MOST_SLOTS
from negatives_gen.job.resources import Node, Resources
from negatives_gen.models import engine
from negatives_gen.models.engine import CPU_ENVIRONMENT, LORA_RANKS, Request, engine_arguments
from negatives_gen.strategies.base import SAMPLE, SCORE
from tests.support.commands import CONTEXT, ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.seconds]

RAY_BACKEND: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
GIB = 2**30


@pytest.fixture(scope="module")
def in_vllm() -> Iterator[Callable[..., Any]]:
    """Calls a function of this module in a process that has imported vLLM."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=300)


def misfit(value: Any, kind: Any) -> str:
    """Why a value is not of this type, "" if it is."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return str(error)
    return ""


def misfits(given: dict[str, Any]) -> dict[str, str]:
    """Arguments that vLLM's `LLM` does not have, or not of this type, and why."""
    from vllm.engine import arg_utils

    fields, found = arg_utils.EngineArgs.__dataclass_fields__, {}
    for name, value in given.items():
        if name not in fields:
            found[name] = "unknown"
            continue
        # One by one: the type of another field is a name that vLLM imports for type checkers only.
        one = types.SimpleNamespace(__annotations__={name: fields[name].type})
        found[name] = misfit(value, get_type_hints(one, dict(vars(arg_utils)))[name])
    return {name: why for name, why in found.items() if why}


def unknown(names: set[str]) -> set[str]:
    from vllm.engine.arg_utils import EngineArgs

    return names - EngineArgs.__dataclass_fields__.keys()


def told(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What an engine is told, case by case."""
    (tmp_path / ADAPTER).write_text('{"r": 12}')
    shared = Resources.plan(
        [SAMPLE, SCORE], [Node(8, 1)], num_engines=None, engine={}, memory={SAMPLE: 0, SCORE: 0}
    ).engine_options
    return {
        "cpu": engine_arguments({}, "", on_cpu=True),
        "gpu": engine_arguments({}, "", on_cpu=False),
        "a GPU shared with a scorer": engine_arguments(shared, "", on_cpu=False),
        "adapter": engine_arguments({}, str(tmp_path), on_cpu=False),
        "workers of Ray": engine_arguments(RAY_BACKEND, "", on_cpu=False),
    }


def test_what_an_engine_is_told_is_of_vllms_names_and_types(in_vllm: Callable[..., Any], tmp_path: Path) -> None:
    cases = told(tmp_path)
    assert {case: in_vllm(misfits, given) for case, given in cases.items()} == {case: {} for case in cases}
    assert cases["gpu"].keys() == {"logprobs_mode", "enable_prefix_caching"}
    assert cases["a GPU shared with a scorer"]["gpu_memory_utilization"] == 0.6
    assert cases["adapter"]["max_lora_rank"] == 16


def test_a_wrong_name_and_a_wrong_type_would_be_found(in_vllm: Callable[..., Any]) -> None:
    wrong = {"tensor_parallel": 2, "tensor_parallel_size": "two", "logprobs_mode": "logps", "max_lora_rank": 12}
    assert in_vllm(misfits, wrong).keys() == wrong.keys()


def test_the_options_that_we_read_or_name_are_vllms(in_vllm: Callable[..., Any]) -> None:
    """Those that the plan looks at, and every `--engine.NAME` in sources, docs and recipes."""
    read: set[str] = set()

    class Read(dict):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return default

    memory = {SAMPLE: 0, SCORE: 0}
    Resources.plan([SAMPLE, SCORE], [Node(8, 2)], num_engines=None, engine=Read(), memory=memory)
    assert read == {"tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"}
    files = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for room in ("data", "negatives_gen", "evaluation", "recipes"):
        files += [path for kind in ("py", "yaml", "md") for path in (ROOT / room).rglob(f"*.{kind}")]
    named = {
        name
        for path in files
        for name in re.findall(r"(?:--engine\.|engine(?:_options)?\.get\(\")([a-z_]+)\b(?!\()", path.read_text())
    }
    assert named >= {"max_logprobs", "max_model_len", "max_num_seqs", "dtype", "speculative_config"}
    assert in_vllm(unknown, read | named) == set()


def sampling_misfits(ends: list[int]) -> list[str]:
    """What a strict reading of vLLM's structs says against what our requests are."""
    import msgspec
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    given = [
        engine.request_parameters(Request([1], 4, 50, 0.7, 16, 3), ends),
        engine.decode_parameters(16, 5, ends, top_k=40, top_p=0.9),
        engine.decode_parameters(16, None, ends, top_k=0, top_p=1.0),
        engine.beam_parameters(7),
        engine.adapter_request("/adapter"),
    ]
    found = []
    for one in given:
        assert isinstance(one, SamplingParams | LoRARequest)
        for field in msgspec.structs.fields(one):
            if why := misfit(getattr(one, field.name), field.type):
                found.append(f"{type(one).__name__}.{field.name}: {why}")
    return found


def parameters(ends: list[int]) -> dict[str, tuple]:
    request = engine.request_parameters(Request([1], 4, 50, 0.7, 16, 3), ends)
    drawn = engine.decode_parameters(16, 5, ends, top_k=40, top_p=0.9)
    greedy = engine.decode_parameters(16, None, ends, top_k=0, top_p=1.0)
    return {
        "request": (request.n, request.top_k, request.temperature, request.max_tokens, request.seed, request.logprobs),
        "drawn": (drawn.n, drawn.top_k, drawn.top_p, drawn.temperature, drawn.seed, drawn.stop_token_ids),
        "greedy": (greedy.n, greedy.temperature, greedy.seed, greedy.logprobs),
    }


def test_what_a_request_says_is_of_vllms_names_and_types(in_vllm: Callable[..., Any]) -> None:
    assert in_vllm(sampling_misfits, [2, 5]) == []
    assert in_vllm(parameters, [5, 2]) == {
        "request": (4, 50, 0.7, 16, 3, 0),
        "drawn": (1, 40, 0.9, 1.0, 5, [2, 5]),
        "greedy": (1, 0.0, None, 0),
    }


def constants() -> tuple[set[int], set[str]]:
    from vllm.config.lora import MaxLoRARanks
    from vllm.envs import environment_variables

    return set(get_args(MaxLoRARanks)), set(environment_variables)


def test_ranks_and_variables_are_those_that_vllm_knows(in_vllm: Callable[..., Any]) -> None:
    ranks, variables = in_vllm(constants)
    assert set(LORA_RANKS) == {rank for rank in ranks if rank >= min(LORA_RANKS)}
    assert max(LORA_RANKS) == max(ranks)
    ours = {name for name in CPU_ENVIRONMENT if name.startswith("VLLM_")} | {"VLLM_LOGGING_LEVEL"}
    assert ours <= variables


def slots(kind: str, memory: int, name: str) -> int:
    """max_num_seqs of an offline engine on a device."""
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    platform = mock.Mock()
    platform.is_tpu.return_value, platform.is_cpu.return_value = False, kind == "cpu"
    platform.get_device_total_memory.return_value, platform.get_device_name.return_value = memory, name
    with mock.patch.object(arg_utils, "current_platform", platform):
        return arg_utils.EngineArgs.get_batch_defaults(1)[1][UsageContext.LLM_CLASS]


def test_the_slots_that_a_plan_counts_with_are_vllms_defaults(in_vllm: Callable[..., Any]) -> None:
    gpus = [(24, "NVIDIA L4"), (80, "NVIDIA A100"), (80, "NVIDIA H100"), (141, "NVIDIA H200"), (180, "NVIDIA B200")]
    found = [in_vllm(slots, "cuda", memory * GIB, name) for memory, name in gpus]
    assert found == [256, 256, 1024, 1024, 1024]
    assert max(found) == MOST_SLOTS
    assert in_vllm(slots, "cpu", 0, "") == CPU_SLOTS == SLOTS


def asked_of_ray(arguments: dict[str, Any]) -> tuple[list[dict[str, float]], str]:
    """The placement group that vLLM's executor for Ray asks for, on a node without a GPU."""
    from vllm import platforms
    from vllm.v1.executor import ray_utils
    from vllm.v1.executor.abstract import Executor

    parallel = types.SimpleNamespace(
        placement_group=None, world_size=arguments["tensor_parallel_size"],
        distributed_executor_backend=arguments["distributed_executor_backend"],
    )  # fmt: skip
    config: Any = types.SimpleNamespace(parallel_config=parallel)
    executor = Executor.get_class(config)
    ray, platform = mock.MagicMock(), mock.Mock(ray_device_key="GPU")
    ray.cluster_resources.return_value = {"GPU": 4.0}
    ray.util.get_current_placement_group.return_value = None
    platform.is_cuda.return_value, platform.device_count.return_value = True, 0
    with (
        mock.patch.object(platforms, "current_platform", platform),
        mock.patch.object(ray_utils, "ray", ray),
        mock.patch.object(ray_utils, "available_resources_per_node", mock.MagicMock()),
        mock.patch.object(ray_utils, "_wait_until_pg_ready"),
        mock.patch.object(ray_utils, "_verify_bundles"),
        mock.patch(f"{executor.__module__}.ray", ray),
        mock.patch.object(executor, "_get_parallel_sizes", side_effect=InterruptedError),  # what follows needs GPUs
        contextlib.suppress(InterruptedError),
    ):
        made: Any = object.__new__(executor)
        made.parallel_config, made.vllm_config = parallel, config
        made._init_executor()
    (call,) = ray.util.placement_group.call_args_list
    return call.args[0], call.kwargs["strategy"]


def test_vllms_workers_of_ray_need_no_gpu_beside_the_engines_actor(in_vllm: Callable[..., Any]) -> None:
    """`job/resources.py` counts on it: one GPU each, on whatever nodes, none on that of the actor."""
    assert in_vllm(asked_of_ray, RAY_BACKEND) == ([{"GPU": 1.0}, {"GPU": 1.0}], "PACK")


def backend(gpus: int) -> str:
    """What vLLM runs an engine of two GPUs with in an actor of Ray that sees so many, or what it refuses it with."""
    import ray
    from vllm.config import parallel

    platform = mock.Mock(dist_backend="nccl")
    platform.is_cuda.return_value, platform.device_count.return_value = True, gpus
    for name in ("is_tpu", "is_rocm", "is_xpu", "is_cpu", "is_out_of_tree"):
        getattr(platform, name).return_value = False
    with (
        mock.patch.object(parallel, "current_platform", platform),
        mock.patch.object(ray, "is_initialized", return_value=True),
        mock.patch.object(ray.util, "get_current_placement_group", return_value=None),
    ):
        try:
            return str(parallel.ParallelConfig(tensor_parallel_size=2).distributed_executor_backend)
        except ValueError as error:
            return re.findall(r"World size \(2\) is larger than the number of available GPUs \(\d\)", str(error))[0]


def test_an_engines_gpus_must_be_its_actors_own(in_vllm: Callable[..., Any]) -> None:
    """Ray Data's actors are in no placement group: vLLM starts processes beside them, which need the node's GPUs."""
    assert in_vllm(backend, 2) == "mp"
    assert in_vllm(backend, 1) == "World size (2) is larger than the number of available GPUs (1)"
