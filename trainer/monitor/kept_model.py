"""Which model a run keeps, where it keeps the best of those that it saved."""

from transformers import TrainerState, TrainingArguments

from trainer.monitor.curves import held_out_values, loss_and_start
from trainer.monitor.log_lines import short


def describe_kept(args: TrainingArguments, state: TrainerState) -> str:
    """A line on when the run stopped and which model it keeps; "" where the best one is not asked for.

    "stopped early at step 40; the model is that of step 10: eval_loss 1.31 (start 2.20)". A loss above its start says
    so: then the reference is better than any model of the run.
    """
    if not args.load_best_model_at_end or state.best_metric is None:
        return ""
    if state.best_model_checkpoint is None:  # a resumed run whose best checkpoint was removed
        step = state.best_global_step
        return f"the best model, of step {step}, is not there any more: the model is that of step {state.global_step}"
    early = f"stopped early at step {state.global_step}; " if state.global_step < state.max_steps else ""
    metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
    line = f"{early}the model is that of step {state.best_global_step}: {metric} {short(state.best_metric, 2)}"
    logs = next((log for log in state.log_history if log["step"] == state.best_global_step and metric in log), {})
    values = held_out_values(logs)
    keys = loss_and_start(values)
    if metric != "eval_loss" or keys is None or keys[0] != "loss":
        return line
    start = values[keys[1]]
    better = "; the reference, which it began as, is better" if state.best_metric > start else ""
    return f"{line} (start {short(start, 2)}){better}"
