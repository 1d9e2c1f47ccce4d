"""DPO: the paper's baseline, TRL's own DPOTrainer on pairs of a negative set, see `trainer.objectives.pairs`."""

import logging
from typing import TYPE_CHECKING

from data.command.wording import counted
from trainer.objectives.base import Objective
from trainer.objectives.contrast import Temperature

if TYPE_CHECKING:
    from transformers import Trainer

    from trainer.ingredients import Setup

log = logging.getLogger(__name__)


class DPO(Objective):
    """Direct preference optimisation without terms of ours: TRL's trainer computes the loss, log 2 at the start."""

    name = "dpo"
    summary = "the baseline, TRL's DPOTrainer on pairs (ground truth, negative) of one strategy; a batch counts pairs"
    Options = Temperature
    needs = "pairs"
    learns_order = False
    done_when_decided = True
    remedies = "a smaller --learning_rate, fewer steps, cpo with --sft_weight 0.1 to 1"

    def own_trainer(self, setup: "Setup", options: Temperature) -> "Trainer":
        from trainer.monitor.start import compare_with_scorer
        from trainer.objectives.pairs import make_dpo_trainer, preference_pairs

        # They may be refused: before a large model is loaded.
        pairs = preference_pairs(setup.data.train, self.name)
        held_out = preference_pairs(setup.data.held_out, self.name) if setup.data.held_out is not None else None
        policy = setup.policy.load()
        compare_with_scorer(setup.data.scored, policy, setup.training, None)
        log.info("%s on %s, TRL's DPOTrainer", self.name, counted(len(pairs), "pair"))
        return make_dpo_trainer(
            pairs, policy, setup.policy.adapter, setup.tokenizer, setup.training, options.beta, held_out
        )


OBJECTIVE = DPO()
