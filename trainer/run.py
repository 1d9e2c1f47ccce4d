"""`python -m trainer.run`: train a model towards one of the objectives of `trainer.objectives`."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.command.errors import UserError, exit_on_user_error
from data.command.log import start_logging
from data.command.options import enter_root
from data.command.terminal import say
from data.command.usage import answered, help_text
from data.storage import sha256
from trainer.config import ABOUT, USAGE, ScriptArguments
from trainer.output import METRICS_FILE, check_output, claim_output, owned_output

if TYPE_CHECKING:
    from trl import ModelConfig

    from data.claim import Claim
    from trainer.arguments import PaperTrainingArguments

log = logging.getLogger(__name__)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, ScriptArguments, usage=USAGE, about=ABOUT):
        return
    start_logging()
    from trainer.arguments import describe_inherited, parse

    if "--help_all" in argv:
        say(f"{help_text(ScriptArguments, usage=USAGE, about=ABOUT, argv=argv)}\n\n{describe_inherited()}")
        return
    parsed = parse(argv)
    enter_root()
    train(*parsed)


def train(script: ScriptArguments, training: "PaperTrainingArguments", model_config: "ModelConfig") -> None:
    """Run one training job, or predict it; everything that can be refused is refused before anything is written.

    Of several processes only the main one looks at the output directory and writes to it.

    Raises:
        UserError: unusable model, data, negative set or checkpoint, or an output directory that holds another job or
            in which another run is at work.
    """
    if script.dry_run:
        from trainer.sizing.dry_run import dry_run

        dry_run(script, training, model_config)
        return
    with owned_output(Path(str(training.output_dir)), is_main=training.process_index == 0) as claim:
        _train(script, training, model_config, claim)


def _train(
    script: ScriptArguments,
    training: "PaperTrainingArguments",
    model_config: "ModelConfig",
    claim: "Claim | None",
) -> None:
    from data.hub import MODEL, require_hub
    from data.models import check_causal, load_tokenizer, tokenizer_hash, weights_hash
    from trainer.assembly import row_budget
    from trainer.attempt import Attempt
    from trainer.groups.sampler import data_seed
    from trainer.groups.training_data import load_training_data
    from trainer.ingredients import Setup
    from trainer.model_card import ModelFacts
    from trainer.monitor.diagnosis import Diagnosis
    from trainer.monitor.kept_model import describe_kept
    from trainer.monitor.metrics_file import MetricsFile
    from trainer.monitor.ownership import StopIfTakenOver
    from trainer.monitor.resumption import EarlyStopping
    from trainer.monitor.safety import CheckpointOnSigterm
    from trainer.monitor.watch import Curves
    from trainer.policy import Policy
    from trainer.publishing import published_name, push
    from trainer.record import job_record
    from trainer.resume import JobStamp, Needs, check_job, find_checkpoint, is_finished, resume_from
    from trainer.setup import make_trainer

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > training.world_size:
        raise UserError(
            f"{started} processes were started, but no GPU was found, so that each would train alone. On CPUs add "
            "--use_cpu true; else start one process."
        )
    is_main = training.process_index == 0
    if not is_main:
        logging.getLogger().setLevel(logging.WARNING)
    output = Path(str(training.output_dir))
    resume = resume_from(training.resume_from_checkpoint)
    needs = Needs.of(training, model_config)
    checkpoint = find_checkpoint(resume, output, needs)
    # transformers reads it too, and takes the text "false" for a directory.
    training.resume_from_checkpoint = checkpoint
    directory = check_causal(script.model, needs_weights=not script.from_scratch)
    tokenizer = load_tokenizer(script.model)
    identity: dict[str, Any] = {"tokenizer_sha256": tokenizer_hash(tokenizer)}
    if script.from_scratch:
        identity["config_sha256"] = sha256((directory / "config.json").read_bytes())
    else:
        identity["weights_sha256"] = weights_hash(script.model)
    row_tokens = row_budget(script.row_tokens, training.device.type)
    data = load_training_data(
        script, tokenizer, identity, seed=data_seed(training), watched=training.eval_strategy != "no"
    )
    parts = script, training, model_config
    names = {"use": data.use, "rank_by": data.rank_by}
    job = job_record(*parts, model=identity, data=data.source, **names, row_tokens=row_tokens)
    if is_main:
        check_output(output, job, resume, checkpoint)
        if checkpoint:
            check_job(checkpoint, job)
    if is_main and training.push_to_hub:
        require_hub(published_name(training), MODEL, "--hub_model_id")  # not after days of work
    if checkpoint and is_finished(output, checkpoint, needs):
        log.info("this job is finished: its last step is %s's", Path(checkpoint).name)
        if is_main and training.push_to_hub:
            push(training)
        _say_where(output, model_config, is_main)
        return
    facts = ModelFacts.of(script, published_name(training), directory, job, model_config.use_peft)
    policy = Policy(directory, model_config, script.from_scratch, script.chosen.dropout)
    with Attempt(output, script.model, claim) as attempt:
        trainer = make_trainer(script, Setup(policy, data, training, tokenizer, row_tokens, script.skip_below))
        sigterm = CheckpointOnSigterm(trainer.accelerator)
        chosen, patience = script.chosen, script.early_stopping_patience
        held_out = 0 if data.held_out is None else len(data.held_out)
        watches = MetricsFile(), Diagnosis.of(chosen, script.options, held_out), Curves()
        stopping = [] if patience is None else [EarlyStopping(patience)]
        guards = [] if claim is None else [StopIfTakenOver(claim)]
        trainer.facts, trainer.pushes = facts, False
        for callback in (JobStamp(job), sigterm, *stopping, *guards, *watches, attempt):
            trainer.add_callback(callback)
        if claim is not None:
            claim.check()
            attempt.writes = True
            claim_output(output, job)
        if checkpoint:
            log.info("going on from %s", checkpoint)
        elif resume:
            log.info("no checkpoint in %s yet, starting from step 0", output)
        trainer.train(resume_from_checkpoint=checkpoint)
    if sigterm.stopped:
        log.warning(
            "SIGTERM: stopped at step %d, checkpoint saved; go on with --resume_from_checkpoint true",
            trainer.state.global_step,
        )
        sys.exit(128 + signal.SIGTERM)
    for save in (trainer.save_model, trainer.save_state):
        if claim is not None:
            claim.check()
        save()
    if is_main and training.push_to_hub:
        push(training)
    if is_main and (kept := describe_kept(training, trainer.state)):
        say(kept, error=True)
    _say_where(output, model_config, is_main)


def _say_where(output: Path, model_config: "ModelConfig", is_main: bool) -> None:
    from trainer.leftovers import describe_checkpoints
    from trainer.monitor.watch import CURVES_FILE

    if not is_main:
        return
    if left := describe_checkpoints(output):
        say(left, error=True)
    say(
        f"logs: {output / METRICS_FILE}, drawn in {output / CURVES_FILE}; docs/logs.md says what they mean",
        error=True,
    )
    if model_config.use_peft:
        say(f"adapter: {output} (merge it into the reference before evaluating)")
    else:
        say(f"model: {output}")


if __name__ == "__main__":
    sys.exit(main())
