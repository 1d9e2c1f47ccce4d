"""Sources of a strategy and of a ranking signal that tests write into a folder outside of the repository."""

STRATEGY = '''
from dataclasses import dataclass

from data.command.errors import UserError
from data.command.options import option
from data.schema import Candidate
from negatives_gen.strategies.base import Novelty, Strategy


@dataclass(frozen=True)
class Options:
    shift: int = option(1, "by how many tokens")
    pace: float = option(1.0, "how fast", decides=False)

    def check(self):
        if self.shift < 1:
            raise UserError(f"--shift must be at least 1, got {self.shift}.")


class Rotated(Strategy):
    """The ground truth's tokens, turned round by `shift`, 2 x `shift`, ..."""

    name = "rotated"
    summary = "the ground truth turned round"
    Options = Options

    def add(self, groups, pool, settings, tools):
        short = {}
        for group in groups:
            *tokens, eos = group.response_ids
            novelty = Novelty(group, self.name)
            for turn in range(1, len(tokens)):
                by = turn * settings["shift"] % len(tokens)
                ids = [*tokens[by:], *tokens[:by], eos]
                candidate = Candidate(self.name, ids, tools.tokenizer.decode(ids, skip_special_tokens=True))
                if self.missing(group, settings) > 0 and novelty.take(candidate):
                    group.negatives.append(candidate)
            if self.missing(group, settings) > 0:
                short[group.id] = "too short"
        return short


ROTATED = Rotated()
'''
SIGNAL = '''
import logging
from dataclasses import dataclass

from data.command.options import NoOptions, option
from negatives_gen.signals.base import Signal


@dataclass(frozen=True)
class Options:
    scale: float = option(1.0, "of a token")

    def check(self):
        pass


class Brevity(Signal):
    """Minus the number of tokens: the shortest is the nearest."""

    name = "brevity"
    summary = "the shorter the nearer"
    Options = Options

    def __init__(self, options, reference):
        self.scale = options.scale
        logging.getLogger("negatives_gen.brevity").warning("long ones are far")  # of a worker

    @classmethod
    def identity(cls, options, reference):
        return {}

    def add(self, groups):
        for group in groups:
            for candidate in group.negatives:
                candidate.similarity[self.name] = -self.scale * len(candidate.ids)


BREVITY = Brevity
'''
