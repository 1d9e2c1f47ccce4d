"""What the server of `tests.support.commands` imports before it forks; it must run nothing."""

import gc
import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"
gc.disable()  # nothing of what is imported goes

for name in (
    "accelerate.utils",
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "peft",
    "pyarrow.parquet",
    "safetensors.torch",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "trl",
    "data.blank",
    "evaluation.run",
    "negatives_gen.__main__",
    "negatives_gen.job.job",
    "tests.support.stubs",
    "trainer.arguments",
    "trainer.objectives.pairs",
    "trainer.run",
    "trainer.trainer",
):
    importlib.import_module(name)

# What has been imported stays: a collection in a forked process need not go through it, nor copy its pages.
gc.freeze()
gc.enable()
