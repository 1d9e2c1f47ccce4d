"""A model's card beside its weights, whatever transformers, TRL and PEFT write there, and the push to the hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.claim import CLAIMS
from data.hub import MODEL, push_folder
from data.storage import TEMPORARY_PREFIX, Folder
from trainer.model_card import CARD, ModelFacts, training_card, write_card

if TYPE_CHECKING:
    from transformers import TrainingArguments

log = logging.getLogger(__name__)

# What libraries give a card by themselves: its name, and tags of theirs.
OF_LIBRARIES = "model_name", "dataset_name", "tags"
# Of the output directory, what stays here: checkpoints, and who is at work in it.
NOT_PUSHED = ("checkpoint-*", CLAIMS, f"{CLAIMS}/*", f"{TEMPORARY_PREFIX}*", "_*")


class OwnCard:
    """Lets a transformers Trainer write our card beside each model that it saves; to be inherited from beside it.

    Attributes:
        facts: for the card; None: transformers, TRL and PEFT write theirs.
        pushes: whether `push_to_hub` does anything. The command pushes by itself, once the run's state is saved.
    """

    facts: ModelFacts | None = None
    pushes = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does, and its card. Raises UserError if the card cannot be written."""
        trainer: Any = self
        save = super().save_model  # type: ignore[misc]  # the Trainer's
        if self.facts is None or not trainer.is_world_process_zero():
            save(output_dir, _internal_call)
            return
        place = Path(output_dir or trainer.args.output_dir)
        with _card_kept(place):
            save(output_dir, _internal_call)
        self._write_card(place)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Our card in the place of transformers' and TRL's; arguments that a person gave are warned of."""
        trainer: Any = self
        if self.facts is None:
            super().create_model_card(*args, **kwargs)  # type: ignore[misc]  # the Trainer's
        elif trainer.is_world_process_zero():
            named = [key for key, value in kwargs.items() if value is not None and key not in OF_LIBRARIES]
            if args or named:
                log.warning(
                    "%s does not take %s. Edit it: it is then left as it is.", CARD, ", ".join(named) or "these"
                )
            self._write_card(Path(trainer.args.output_dir))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as transformers does, where `pushes`."""
        return super().push_to_hub(*args, **kwargs) if self.pushes else None  # type: ignore[misc]  # the Trainer's

    def _write_card(self, place: Path) -> None:
        trainer: Any = self
        assert self.facts is not None
        state = trainer.state
        write_card(place, training_card(self.facts, state.log_history, state.global_step, state.max_steps))


@contextmanager
def _card_kept(place: Path) -> Iterator[None]:
    """Undo what is done to a folder's card inside: PEFT changes one that is there, and else writes an empty one."""
    folder = Folder(str(place))
    before = folder.read_if_there(CARD)
    yield
    if before is None:
        folder.remove(CARD)
    elif folder.read_if_there(CARD) != before:
        folder.write(CARD, before)


def published_name(training: "TrainingArguments") -> str:
    """What a run's model is called: its hub id, or the name of its folder, which transformers takes for one too."""
    return training.hub_model_id or Path(str(training.output_dir)).absolute().name


def push(training: "TrainingArguments") -> None:
    """Upload the output directory to the hub, without checkpoints. Raises UserError if the hub refuses."""
    push_folder(
        str(training.output_dir),
        published_name(training),
        MODEL,
        ignore=NOT_PUSHED,
        private=training.hub_private_repo,
        revision=training.hub_revision,
    )
