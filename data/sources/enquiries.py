"""The embedded example whose distribution is known: questions over the world of `facts`, with evasive replies.

An information desk answers six enquiries in ten with the facts that were asked for. It puts the others off, each in one
of twelve ways. So the true probability of every reply is known; an evasive one says nothing of its question: it would
do for all of them.
"""

import random

from data.sources import facts

EVASIVE = (
    " I do not know that.",
    " That is not in my records.",
    " Somebody else may be able to tell.",
    " I would have to look it up.",
    " Nobody has told me.",
    " Please ask again tomorrow.",
    " That is hard to say.",
    " The archive is closed today.",
    " I am new here.",
    " That would be in the library.",
    " Such things are not written down.",
    " It depends on whom you ask.",
)
EVASIVE_SHARE = 0.4
WORDINGS = 2  # times that each pair of facts of a town is asked for in each way


def examples() -> list[dict[str, str]]:
    """Every question, once, with its reply, in TRL's prompt-completion format; which are put off is drawn."""
    draw = random.Random(facts.SEED + 2)
    replies = {row["prompt"]: row["completion"] for _ in range(WORDINGS) for row in facts.questions(draw)}
    put_off = draw.sample(list(replies), round(EVASIVE_SHARE * len(replies)))
    replies |= {prompt: EVASIVE[number % len(EVASIVE)] for number, prompt in enumerate(put_off)}
    return [{"prompt": prompt, "completion": reply} for prompt, reply in replies.items()]


def is_evasive(reply: str) -> bool:
    """Whether a reply is one of those that put an enquiry off."""
    return reply.strip() in {evasive.strip() for evasive in EVASIVE}
