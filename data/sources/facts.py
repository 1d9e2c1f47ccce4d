"""The embedded example: questions over a small invented world, whose answers code can check.

A world of towns with five attributes each. A question asks for two of them; its answer states both. Every fact
occurs in several questions, so half of the questions state nearly every fact, and the other half tests whether a model
can state them when asked in another combination or wording.
"""

import functools
import random
import re
from itertools import combinations, product

SEED = 20250223
NUM_TOWNS = 24

_ONSETS = (
    "Bel", "Cor", "Dun", "Fal", "Gar", "Hol", "Ker", "Lim", "Mor", "Nes", "Or", "Pel", "Quel", "Ros", "Sel", "Tor",
)  # fmt: skip
_ENDINGS = ("ada", "beck", "dale", "hurst", "ia", "mere", "mouth", "stad", "ton", "wick")

VALUES = {
    "island": ("Aska", "Brenn", "Calder", "Dova", "Eldey", "Firth", "Gorm", "Hestan"),
    "founder": (
        "Agnes", "Bruno", "Clara", "Edgar", "Flora", "Gustav", "Helga", "Ivo",
        "Jonas", "Karin", "Ludwig", "Martha", "Nils", "Otto", "Petra", "Rufus",
    ),
    "craft": (
        "bells", "boats", "candles", "carpets", "cheese", "clocks", "drums", "glass",
        "honey", "kites", "knives", "lace", "paper", "pottery", "ropes", "violins",
    ),
    "month": (
        "January", "February", "March", "April", "May", "June",
        "July", "August", "September", "October", "November", "December",
    ),
    "animal": (
        "badger", "bear", "crane", "falcon", "fox", "hare", "heron", "otter", "owl", "raven", "stag", "wolf",
    ),
}  # fmt: skip

# Attribute -> pairs of how it is asked for and how the answer states it: the question decides the wording, so what
# sets a wrong answer apart is what it says, not how.
_WORDINGS = {
    "island": (("on which island it lies", "lies on {}"), ("the island it belongs to", "belongs to {}")),
    "founder": (("who founded it", "was founded by {}"), ("the name of its founder", "has {} as its founder")),
    "craft": (("what it is known for", "is known for its {}"), ("what its workshops make", "makes {}")),
    "month": (("when its fair is held", "holds its fair in {}"), ("the month of its fair", "has a fair every {}")),
    "animal": (("which animal is on its flag", "has a {} on its flag"), ("its emblem", "shows the {} as its emblem")),
}
_QUESTIONS = (
    "Tell me about {town}: {first} and {second}.",
    "{town}? Say {first} and {second}.",
    "Say {first} and {second}. The town is {town}.",
    "What about {town}? I ask for {first} and {second}.",
)


@functools.cache
def world() -> dict[str, dict[str, str]]:
    """Town -> attribute -> value. Always the same."""
    draw = random.Random(SEED)
    names = ["".join(parts) for parts in product(_ONSETS, _ENDINGS)]
    return {
        town: {attribute: draw.choice(values) for attribute, values in VALUES.items()}
        for town in draw.sample(names, NUM_TOWNS)
    }


def examples() -> list[dict[str, str]]:
    """Every question with its correct answer, in TRL's prompt-completion format."""
    return questions(random.Random(SEED + 1))


def questions(draw: random.Random) -> list[dict[str, str]]:
    """Every pair of facts of every town asked for in four ways, with the correct answers; wordings are drawn."""
    rows = []
    for town, pair, question in product(world(), combinations(VALUES, 2), _QUESTIONS):
        asked = draw.sample(pair, 2)
        wordings = [draw.choice(_WORDINGS[attribute]) for attribute in asked]
        first, second = (how_asked for how_asked, _ in wordings)
        clauses = [
            stated.format(world()[town][attribute]) for attribute, (_, stated) in zip(asked, wordings, strict=True)
        ]
        prompt = f"Question: {question.format(town=town, first=first, second=second)}\nAnswer:"
        rows.append({"prompt": prompt, "completion": f" {town} {clauses[0]} and {clauses[1]}."})
    return rows


def is_correct(prompt: str, answer: str) -> bool:
    """Whether an answer states both facts that the prompt asks for, correctly, and nothing false.

    It must name no other town, and for every attribute it mentions, exactly the true value. Negation is not
    understood ("is not known for its bells" states bells): the world's own answers contain none.

    Raises:
        KeyError: the prompt names no town of this world.
    """
    town = next((word for word in _words(prompt) if word in world()), None)
    if town is None:
        raise KeyError(f"no town of the invented world in prompt {prompt!r}")
    asked = {a for a, wordings in _WORDINGS.items() if any(how_asked in prompt for how_asked, _ in wordings)}
    words = set(_words(answer))
    if (words & world().keys()) - {town}:
        return False
    stated = {attribute: words & set(values) for attribute, values in VALUES.items()}
    stated = {attribute: found for attribute, found in stated.items() if found}
    return asked <= stated.keys() and all(found == {world()[town][a]} for a, found in stated.items())


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)
