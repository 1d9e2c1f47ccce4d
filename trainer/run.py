"""`python -m trainer.run`: train a model on a negative set (cpo, cpo-rank), or on ground truths (mle)."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import describe_options
from data.errors import UserError, exit_on_user_error
from data.manifest import first_difference
from trainer.config import ScriptArguments

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainer.arguments import PaperTrainingArguments

JOB_FILE = "trainer_job.json"

HELP = """usage: python -m trainer.run --shards DIR --model M --output_dir O --objective cpo [--key value ...]

Train on the shards of a negative set with Contrastive Preference Optimization (arXiv 2502.16433: K-way, with a
reference model; not TRL's CPO of arXiv 2401.08417), or by next-token prediction. The final model and its tokenizer
lie in --output_dir itself.

our options:
  --config FILE.yaml
        YAML file of any keys, as in TRL; flags override it.
{options}

inherited options:
  Every argument of transformers' TrainingArguments and of TRL's ModelConfig under its own name (--max_steps,
  --per_device_train_batch_size, --gradient_accumulation_steps, --dtype, --use_peft, --load_in_4bit ...).
  --help_all lists them. Defaults are the paper's: AdamW, learning rate 1e-5, weight decay 0.05, batch of 64 groups.
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        options = describe_options(ScriptArguments).split("\n", 2)[2]
        print(HELP.format(options=options))
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "datasets", "fsspec", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from trainer.arguments import make_parser, parse

    if "--help_all" in argv:
        make_parser().print_help()
        return
    train(*parse(argv))


def train(script: ScriptArguments, training: "PaperTrainingArguments", model_config: "ModelConfig") -> None:
    """Run one training job; everything that can be refused is refused before anything is written.

    Raises:
        UserError: unusable model, data or negative set, or an output directory that holds another job.
    """
    from transformers import set_seed

    from data.identity import check_model, load_tokenizer, tokenizer_hash, weights_hash

    assert script.model is not None  # ScriptArguments.check
    directory = check_model(script.model, needs_weights=not script.from_scratch)
    tokenizer = load_tokenizer(script.model)
    identity = {
        "weights_sha256": None if script.from_scratch else weights_hash(script.model),
        "tokenizer_sha256": tokenizer_hash(tokenizer),
    }
    dataset, source = _load_dataset(script, tokenizer, identity)
    _claim_output(
        Path(str(training.output_dir)), _job(script, training, identity, source), training.resume_from_checkpoint
    )

    from trainer.dataset import Collator
    from trainer.trainer import ContrastiveTrainer

    set_seed(training.seed)
    model, path = _load_model(script, model_config, directory)
    row_tokens = script.row_tokens or (8192 if training.device.type == "cuda" else 1024)
    logging.getLogger(__name__).info(
        "%s on %d groups, %s layout, at most %d tokens per forward pass",
        script.objective,
        len(dataset),
        path,
        row_tokens,
    )
    trainer = ContrastiveTrainer(
        model=model,
        args=training,
        train_dataset=dataset,
        data_collator=Collator(path, row_tokens),
        processing_class=tokenizer,
        objective=script.objective,
        beta=script.beta,
        path=path,
    )
    trainer.train(resume_from_checkpoint=_checkpoint(training))
    trainer.save_model()
    trainer.save_state()
    print(f"model: {training.output_dir}")


def _load_dataset(script: ScriptArguments, tokenizer: Any, identity: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The training data, and what identifies it."""
    from data.identity import context_length
    from data.prepare import describe_rejects, prepare_groups, require_groups
    from data.shards import NegativeSet
    from data.sources import fingerprint, load_examples
    from data.strategies import parse_counts
    from trainer.dataset import ContrastiveGroups, GroundTruths

    assert script.model is not None
    if script.shards is not None:
        negatives = NegativeSet(script.shards)
        negatives.check_tokenizer(identity["tokenizer_sha256"], script.model)
        if script.objective == "mle":
            dataset = GroundTruths.from_negative_set(negatives, script.split)
        else:
            negatives.check_reference(identity["weights_sha256"], script.model)
            use = parse_counts(script.use, "--use") if script.use else None
            dataset = ContrastiveGroups(negatives, script.split, use)
        checksums = [shard.sha256 for shard in negatives.manifest.shards]
        return dataset, {"shards": checksums}
    assert script.dataset is not None
    examples = load_examples(script.dataset, script.task, script.split)
    groups, rejects = prepare_groups(examples, tokenizer, context_length(script.model))
    require_groups(groups, rejects, f"data set '{script.dataset}'")
    if rejects:
        logging.getLogger(__name__).warning("%d rows read, %s", len(examples), describe_rejects(rejects))
    return GroundTruths.from_groups(groups), {"examples_sha256": fingerprint(examples)}


def _load_model(script: ScriptArguments, model_config: "ModelConfig", directory: Path) -> tuple[Any, str]:
    """The policy, taught to return log-probabilities and wrapped for PEFT if asked; and its path."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_peft_config, get_quantization_config

    from trainer.logprobs import prepare_model

    dtype = model_config.dtype
    options: dict[str, Any] = {"dtype": dtype if dtype in (None, "auto") else getattr(torch, dtype)}
    if model_config.attn_implementation:
        options["attn_implementation"] = model_config.attn_implementation
    if script.from_scratch:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), **options)
    else:
        quantization = get_quantization_config(model_config)
        if quantization is not None:
            options["quantization_config"] = quantization
            options["device_map"] = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
        model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, **options)
    if script.objective != "mle":
        # Dropout would make the policy differ from the reference that was scored without it.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]  # torch types attributes as tensors
    path = prepare_model(model)
    peft_config = get_peft_config(model_config)
    if peft_config is not None:
        from peft import get_peft_model, prepare_model_for_kbit_training

        if model_config.load_in_4bit or model_config.load_in_8bit:
            model = prepare_model_for_kbit_training(model)
        model = get_peft_model(model, peft_config)
    return model, path


def _job(
    script: ScriptArguments, training: "PaperTrainingArguments", identity: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    """What decides the result of this run: a checkpoint may only be resumed under the same."""
    return {
        "objective": script.objective,
        "model": identity,
        "data": source,
        "split": script.split,
        "use": script.use,
        "beta": script.beta if script.objective != "mle" else None,
        "seed": training.seed,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
    }


def _claim_output(output: Path, job: dict[str, Any], resume: str | bool | None) -> None:
    """Write the job's description into the output directory, or refuse the directory."""
    record = output / JOB_FILE
    job = json.loads(json.dumps(job))
    if output.exists() and not output.is_dir():
        raise UserError(f"output directory '{output}' is a file. Choose another --output_dir.")
    if record.is_file():
        difference = first_difference(json.loads(record.read_text()), job)
        if difference:
            key, theirs, ours = difference
            raise UserError(
                f"output directory '{output}' already holds another job: its {key} is {theirs!r}, this job's is "
                f"{ours!r}. Choose another --output_dir."
            )
        if not resume:
            raise UserError(
                f"output directory '{output}' already holds this job. Go on from its last checkpoint with "
                "--resume_from_checkpoint true, or choose another --output_dir."
            )
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output directory '{output}' already holds other files. Choose an empty or new --output_dir.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(job, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write output directory '{output}': {error.strerror}.") from error


def _checkpoint(training: "PaperTrainingArguments") -> str | bool | None:
    """`--resume_from_checkpoint true` means the last one in the output directory; a path means that one."""
    from transformers.trainer_utils import get_last_checkpoint

    asked = training.resume_from_checkpoint
    if asked is None or str(asked).lower() == "false":
        return None
    if str(asked).lower() == "true":
        found = get_last_checkpoint(str(training.output_dir))
        if found is None:
            logging.getLogger(__name__).info("no checkpoint in %s yet, starting from step 0", training.output_dir)
        return found
    if not Path(str(asked)).is_dir():
        raise UserError(f"--resume_from_checkpoint '{asked}' does not exist. Give a checkpoint directory, or true.")
    return str(asked)


if __name__ == "__main__":
    sys.exit(main())
