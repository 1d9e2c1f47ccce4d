"""What other tools call our options: transformers and TRL, vLLM, lm-evaluation-harness, axolotl, LLaMA-Factory.

Only for hints: an option has one name here.
"""

from collections.abc import Collection, Iterable

from data.command.errors import did_you_mean
from data.command.wording import is_or_are

# Ours, with a value where it does not speak for itself <- theirs. A command's hint names those of ours that it has.
OURS: dict[str, tuple[str, ...]] = {
    "model": (
        *("model_name_or_path", "model_name", "model_path", "model_id", "base_model", "pretrained"),
        *("ref_model", "ref_model_name_or_path", "reference_model", "reference"),
    ),
    "output_dir": ("out", "output", "output_path", "out_dir", "save_dir", "save_path"),
    "out": ("output_dir", "output", "output_path", "out_dir", "output_file", "save_dir", "save_path"),
    "dataset": (
        *("dataset_name", "dataset_path", "datasets", "data", "data_path", "data_files", "dataset_dir"),
        *("train_file", "train_data", "train_dataset", "input", "input_file", "prompts"),
    ),
    "dataset ORG/NAME/CONFIG:SPLIT": ("dataset_config", "dataset_config_name", "dataset_split"),
    "shards": ("dataset_name", "dataset_path", "datasets", "data", "data_path", "train_file", "train_dataset"),
    "test_dataset": ("validation_file", "eval_file", "test_file", "val_file", "eval_dataset", "val_data"),
    "eval_shards": ("validation_file", "eval_file", "test_file", "val_file", "eval_dataset", "val_data"),
    "test_share": ("val_set_size", "val_size", "test_size", "validation_split", "validation_split_percentage"),
    "limit": ("max_samples", "max_train_samples", "num_examples", "num_prompts", "max_examples", "num_rows"),
    "columns NAME=COLUMN": (
        *("text_column", "dataset_text_field", "prompt_column", "response_column", "field_messages"),
        *("prompt_field", "response_field", "input_key", "label_key"),
    ),
    "max_length": ("max_seq_length", "max_seq_len", "seq_length", "seq_len", "sequence_len", "cutoff_len"),
    "max_new_tokens": (
        *("max_tokens", "max_gen_toks", "max_completion_length", "max_output_tokens", "max_response_length"),
        *("max_gen_len", "response_length"),
    ),
    "strategies an=N": (
        *("n", "k", "num_samples", "num_return_sequences", "num_generations", "num_completions"),
        *("num_negatives", "n_samples", "samples_per_prompt"),
    ),
    "temperature": ("temp", "sampling_temperature"),
    "decode topkK-pP": ("top_p", "top_k"),
    "decode": ("do_sample", "num_beams", "gen_kwargs", "decoding", "sampling"),
    "num_engines": ("data_parallel_size", "replicas", "dp"),
    "engine.tensor_parallel_size": ("tensor_parallel_size", "tensor_parallel", "tp", "tp_size"),
    "engine.pipeline_parallel_size": ("pipeline_parallel_size", "pp"),
    "engine.gpu_memory_utilization": ("gpu_memory_utilization", "gpu_memory_util"),
    "engine.max_model_len": ("max_model_len", "max_model_length"),
    "engine.max_num_seqs": ("max_num_seqs",),
    "engine.quantization": ("quantization",),
    "engine.enforce_eager": ("enforce_eager",),
    "engine.dtype": ("dtype", "torch_dtype"),
    "scorer_dtype": ("dtype", "torch_dtype", "bf16"),
    "dtype": ("torch_dtype",),
    "judge.model": ("judge_model", "judge", "annotator", "evaluator"),
    "judge.base_url": ("base_url", "api_base", "openai_api_base", "api_url", "server"),
    "api.base_url": ("base_url", "api_base", "openai_api_base", "api_url", "server"),
    "judge.concurrency": ("concurrency", "num_concurrent", "max_concurrent", "max_concurrency"),
    "api.concurrency": ("concurrency", "num_concurrent", "max_concurrent", "max_concurrency"),
    "embedder": ("embedding_model", "embed_model", "sentence_transformer"),
    "learning_rate": ("lr", "peak_lr"),
    "per_device_train_batch_size": (
        *("batch_size", "train_batch_size", "micro_batch_size", "per_device_batch_size", "per_gpu_train_batch_size"),
        *("bs", "bsz"),
    ),
    "per_device_eval_batch_size": ("eval_batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation", "accumulation_steps", "grad_accum", "grad_acc_steps"),
    "num_train_epochs": ("epochs", "num_epochs", "n_epochs", "epoch"),
    "max_steps": ("steps", "num_steps", "train_steps", "max_train_steps", "max_iters", "num_train_steps"),
    "warmup_steps": ("warmup", "warmup_ratio", "num_warmup_steps", "lr_warmup_steps"),
    "lr_scheduler_type": ("lr_scheduler", "scheduler", "lr_schedule"),
    "max_grad_norm": ("gradient_clipping", "clip_grad", "grad_clip", "max_norm"),
    "optim": ("optimizer", "optimiser"),
    "use_peft": ("lora", "use_lora", "adapter", "peft", "finetuning_type"),
    "lora_r": ("lora_rank", "rank"),
    "lora_target_modules": ("lora_target", "target_modules"),
    "load_in_4bit": ("qlora", "quantization_bit"),
    "objective": ("loss_type", "loss", "method", "stage", "rl", "algorithm"),
    "beta": ("dpo_beta", "pref_beta", "kl_coef"),
    "sft_weight": ("rpo_alpha", "cpo_alpha", "sft_alpha", "pref_ftx", "nll_weight"),
    "eval_strategy": ("evaluation_strategy", "do_eval", "eval"),
    "early_stopping_patience": ("patience",),
    "report_to": ("wandb", "use_wandb", "wandb_project", "log_with", "logger", "tracker"),
    "resume_from_checkpoint": ("resume", "resume_from", "auto_resume_from_checkpoints", "ckpt"),
    "push_to_hub": ("hub_model_id", "hub_repo", "repo_id", "hub_dataset_id"),
    "row_tokens": ("packing", "max_tokens_per_batch", "sample_packing"),
}
# Theirs of something that no option of ours is -> those that come nearest, of which a command has some.
NEAREST: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("top_p", "min_p"), ("top_k", "temperature", "decode")),
    **dict.fromkeys(("temperature", "temp", "sampling_temperature"), ("decode",)),
    "best_of": ("strategies an=N",),
    **dict.fromkeys(("num_gpus", "num_workers"), ("num_engines", "engine.tensor_parallel_size")),
    "batch_size": ("engine.max_num_seqs",),
    "annotators_config": ("judge.model", "judge.template"),
}


def hint(word: str, known: Collection[str]) -> str:
    """Return " Use --x here." for another tool's name of options that a command has, else as `did_you_mean`.

    For a name of something that the command has not, what comes nearest.

    Args:
        known: the names of a command's options; of one that takes any key, its name alone.
    """
    word = word.replace("-", "_").lower()
    if ours := _known((name for name, theirs in OURS.items() if word in theirs), known):
        return f" Use {' or '.join(ours)} here."
    if near := _known(NEAREST.get(word, ()), known):
        return f" There is no {word} here; {' and '.join(near)} {is_or_are(len(near))} what there is."
    return did_you_mean(word, known)


def _known(names: Iterable[str], known: Collection[str]) -> list[str]:
    """The names that are options of a command, with dashes."""
    return [f"--{name}" for name in names if _is_known(name.partition(" ")[0], known)]


def _is_known(name: str, known: Collection[str]) -> bool:
    group, dot, _ = name.partition(".")
    return name in known or bool(dot and group in known)
