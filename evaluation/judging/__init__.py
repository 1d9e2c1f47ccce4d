"""Judges and their verdicts: which of two answers wins."""

from evaluation.judging.base import Judge, JudgeOptions


def make_judge(options: JudgeOptions, store_path: str) -> Judge:
    """The judge of `--judge.KEY VALUE` options: a reward model if one is named, else a chat model, or a panel of them.

    Args:
        store_path: folder that keeps verdicts and rewards.

    Raises:
        UserError: an option is out of range, or the key, the template, the model or the store is unusable.
    """
    options.check()
    if options.reward_model is not None:
        from evaluation.answers.cache import Store
        from evaluation.judging.reward_judge import RewardJudge

        return RewardJudge(options.reward_model, Store(store_path))
    from data.chat.budget import Budget
    from evaluation.judging.chat_judge import ChatJudge
    from evaluation.judging.panel import Panel

    budgets = [Budget(options.max_requests, options.max_cost, *prices) for prices in options.prices()]
    for budget in budgets:
        budget.others = [other for other in budgets if other is not budget]
    judges = [ChatJudge(options, *one, store_path) for one in zip(options.model, budgets, strict=True)]
    return judges[0] if len(judges) == 1 else Panel(judges)


def check_chat_judge(options: JudgeOptions) -> None:
    """Raise UserError for a chat model's key or template that cannot be used, before anything is loaded."""
    from data.chat.client import read_key
    from data.chat.settings import checked_url, public_url
    from evaluation.judging.question import read_template

    read_key(public_url(checked_url("judge", options.base_url)), "judge")
    read_template(options.template)
