"""What the server of `tests.support.commands` imports besides for the tests of vLLM; it must run nothing."""

import gc
import importlib
import os

from negatives_gen.models.engine import CPU_ENVIRONMENT

gc.disable()
for name, value in CPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)

for name in (
    "vllm",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.model_executor.models.gpt2",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
):
    importlib.import_module(name)

gc.freeze()
gc.enable()
