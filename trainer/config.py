"""Our own options of `python -m trainer.run`. Everything else is transformers' TrainingArguments and TRL's ModelConfig.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields
from typing import Any

from data.command.entries import check
from data.command.errors import UserError
from data.command.fields import default_of
from data.command.options import entry_options, fields_of_entries, option, require_local
from data.command.registry import OR_OWN
from data.command.values import require_positive
from data.sources.source_options import DATASET_HELP, SourceOptions
from data.sources.splits import require_split
from trainer.groups.use import METAVAR, in_one_word, use_help
from trainer.objectives import DEFAULT, OBJECTIVES, names_with
from trainer.objectives.base import Objective

COMMAND = "python -m trainer.run"

# The paper's training settings (section 5), under their names in transformers' TrainingArguments.
PAPER_BATCH_SIZE = 64
# "We fix the learning rate to be 1e-5": constant, or the same in all experiments? The paper names no schedule, so
# transformers' linear decay to 0 stays.
PAPER_LEARNING_RATE = 1e-5
PAPER_WEIGHT_DECAY = 0.05

TRUTHS_ALONE = names_with(needs="truths")
OF_SOURCE = tuple(field.name for field in fields(SourceOptions))
USAGE = f"{COMMAND} --model M --output_dir O --shards DIR [--objective {DEFAULT}] [--key value ...]"
ABOUT = """
Train on the shards of a negative set with Contrastive Preference Optimization (arXiv 2502.16433: K-way, with a
reference model; not TRL's CPO of arXiv 2401.08417) or a baseline. The final model and its tokenizer lie in --output_dir
itself.

Every argument of transformers' TrainingArguments and of TRL's ModelConfig may be given too, under its own name
(--max_steps, --per_device_train_batch_size, --gradient_accumulation_steps, --dtype, --use_peft, --load_in_4bit ...).
--help_all lists them. Defaults are the paper's: AdamW, learning rate 1e-5, weight decay 0.05, batch of 64 groups.
"""


@dataclass
class ScriptArguments(SourceOptions):
    """What to train on and towards which objective."""

    model: str = option(
        None,
        "model to start from, a directory or hub id; for a contrast the reference itself",
        required=True,
        metavar="PATH",
    )
    output_dir: str = option(None, "where the model and its checkpoints go", metavar="DIR", required=True)
    objective: str = option(
        DEFAULT,
        "; ".join(f"{name}: {OBJECTIVES.load(name).summary}" for name in OBJECTIVES.names()) + f"; {OR_OWN}",
        metavar="NAME",
    )
    shards: list[str] | None = option(
        None, "negative sets to train on: directories or URLs that negatives_gen wrote", metavar="DIR"
    )
    use: list[str] | None = option(None, use_help(drawn="a fresh draw each epoch", signal="--rank_by"), metavar=METAVAR)
    min_similarity: float | None = option(None, "leave out negatives less similar to the ground truth, by --rank_by")
    max_similarity: float | None = option(None, "leave out negatives more similar to the ground truth, by --rank_by")
    in_support: bool = option(False, "keep only the groups whose ground truth the sampler could have said itself")
    rank_by: str | None = option(
        None,
        "ranking signal, e.g. rouge: objectives with ranking learn its order, --min/max_similarity, :similar and the "
        "logged Kendall's tau are by it (default: the set's first)",
        metavar="SIGNAL",
    )
    eval_shards: list[str] | None = option(
        None, "negative sets of held-out groups for --eval_strategy (default: --shards)", metavar="DIR"
    )
    eval_split: str = option("test", "which half of the data to watch with --eval_strategy", metavar="HALF")
    max_eval_samples: int | None = option(None, "watch the first so many held-out groups only")
    early_stopping_patience: int | None = option(
        None,
        "stop after so many evaluations of held-out groups in a row that were no better than the best, by "
        "--metric_for_best_model (default: loss), and take the best model: with --load_best_model_at_end true",
    )
    dataset: str | None = option(
        None,
        f"{TRUTHS_ALONE} without --shards, with --task and what else says how rows are read: {DATASET_HELP}",
        metavar="PATH",
    )
    max_length: int | None = option(
        None,
        f"{TRUTHS_ALONE} without --shards: prompt and response in tokens, at most (default: the model's context)",
    )
    split: str = option(
        "train", "which half of the data, or of the negative set, to train on: train, test or all", metavar="HALF"
    )
    from_scratch: bool = option(
        False, f"{names_with(from_scratch=True)}: start from random weights, made from the config.json of --model"
    )
    row_tokens: int | None = option(
        None, "token budget of one forward pass; groups are packed up to it (default: 1024 on a CPU, 8192 on a GPU)"
    )
    skip_below: float | None = option(
        None,
        "no backward pass over candidates whose weight in the loss of their group is not above this, e.g. "
        "0.01; loss and metrics stay those of whole groups (default: a backward pass over all)",
        metavar="W",
    )
    dry_run: bool = option(
        False,
        "train nothing and write nothing: predict memory per device, tokens, FLOP and time of this run from config "
        "and data, without weights; a run that does not fit is refused, with what would help",
    )
    dry_run_world: int = option(1, "with --dry_run: on so many devices, started as one process; shard with --fsdp")
    dry_run_device: str | None = option(
        None,
        "with --dry_run: on this device, cpu or a GPU such as A100-SXM4-80GB (default: what this machine has)",
        metavar="NAME",
    )
    dry_run_utilisation: float = option(
        0.4, "with --dry_run: share of the device's bfloat16 peak that is taken for reached, for the predicted time"
    )
    objective_options: dict[str, Any] = entry_options(OBJECTIVES, chosen_by="objective")

    @property
    def chosen(self) -> Objective:
        """The objective that --objective names."""
        return OBJECTIVES.load(self.objective)

    @property
    def options(self) -> Any:
        """An instance of the `Options` of the chosen objective."""
        return self.objective_options[self.chosen.name]

    @property
    def negatives(self) -> str | None:
        """`use` as it is written in one word: "an=4,bn=3"."""
        return in_one_word(self.use)

    def check(self) -> None:
        """Raise UserError for an unknown objective, values out of their range and senseless combinations."""
        require_local(self.output_dir, "--output_dir")
        objective = self.chosen
        truths_alone = objective.needs == "truths"
        if not self.shards and (not truths_alone or self.dataset is None):
            what = " or --dataset: what to train on" if truths_alone else ": sets that python -m negatives_gen makes"
            raise UserError(f"objective '{objective.name}' needs --shards{what}.")
        if self.shards and self.dataset is not None:
            raise UserError("give either --shards or --dataset, not both.")
        if self.from_scratch and not objective.from_scratch:
            raise UserError(
                f"--from_scratch goes with --objective {names_with(from_scratch=True)} only; '{objective.name}' starts "
                "from a trained model."
            )
        self.check_source(self.split)
        require_split(self.eval_split)
        require_positive(
            self, "max_eval_samples", "max_length", "row_tokens", "early_stopping_patience", "dry_run_world"
        )
        if not 0 < self.dry_run_utilisation <= 1:
            raise UserError(f"--dry_run_utilisation must be above 0 and at most 1, got {self.dry_run_utilisation}.")
        low, high = self.min_similarity, self.max_similarity
        if low is not None and high is not None and low > high:
            raise UserError(f"--min_similarity {low} is above --max_similarity {high}.")
        if self.skip_below is not None and not 0 <= self.skip_below < 1:
            raise UserError(f"--skip_below must be from 0 to less than 1, got {self.skip_below}.")
        self._refuse_others_options()
        check(self.options)
        self._refuse_idle()
        if self.negatives is not None:
            from trainer.groups.choice import parse_use

            parse_use(self.negatives)  # before a model or a set is looked at
        if objective.needs == "pairs" and ":random" in (self.negatives or ""):
            raise UserError(
                f"objective '{objective.name}' trains on pairs that are made once. Leave ':random' out of --use."
            )

    def _refuse_others_options(self) -> None:
        """Options of other objectives: who gives one expects it to count."""
        mine = self.chosen.name
        for name, known in fields_of_entries(OBJECTIVES, self.objective).items():
            if mine in known.entries or known.field.metadata.get("idle_elsewhere"):
                continue
            owner = known.entries[0]
            default = getattr(type(self.objective_options[owner])(), name)
            if getattr(self.objective_options[owner], name) != default:
                raise UserError(
                    f"--{name} does not apply to objective '{mine}'; it goes with --objective "
                    f"{' and '.join(known.entries)}. Leave it out."
                )

    def _refuse_idle(self) -> None:
        """Options that would do nothing."""
        needs, spoken = self.chosen.needs, f"objective '{self.chosen.name}'"
        unfiltered = self.min_similarity is None and self.max_similarity is None
        unused = unfiltered and ":similar" not in (self.negatives or "")
        idle: list[tuple[bool, str, tuple[str, ...]]] = [
            (
                needs == "truths",
                f"{spoken}, which trains on ground truths alone",
                ("use", "rank_by", "min_similarity", "max_similarity"),
            ),
            (needs == "pairs", f"{spoken}, which trains on pairs", ("row_tokens",)),
            (
                needs == "pairs" and unused,
                f"{spoken} without --min_similarity, --max_similarity or :similar",
                ("rank_by",),
            ),
            (
                not self.chosen.of_logps_alone,
                f"{spoken}, whose loss is not one of the log-probabilities of whole groups",
                ("skip_below",),
            ),
            (bool(self.shards), "--shards, whose prompts are made", (*OF_SOURCE, "max_length")),
            (self.dataset is not None, "--dataset", ("eval_shards", "in_support")),
            (
                not self.dry_run,
                "a run without --dry_run",
                ("dry_run_world", "dry_run_device", "dry_run_utilisation"),
            ),
        ]
        for applies, to, names in idle:
            for field in fields(self):
                if applies and field.name in names and getattr(self, field.name) != default_of(field):
                    raise UserError(f"--{field.name} does not apply to {to}. Leave it out.")
