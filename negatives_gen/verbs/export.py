"""`python -m negatives_gen export DIR --format F --out FILE`: the set's texts, or messages, for other trainers.

Each trainer puts BOS and EOS around the texts itself; so the texts have none. Of a chat it gets the messages, to which
it applies the template itself: a text that the template wrote would begin with a second BOS.
"""

import logging
import sys
from dataclasses import dataclass

from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config, option, resolve_path
from data.command.terminal import say
from data.command.usage import answered
from data.command.wording import counted
from data.counts import format_counts, parse_counts
from data.places import real_path, refuse_foreign
from data.ranks import ranks_of
from data.schema import Candidate, Group
from data.shards import NegativeSet
from data.sources.splits import SPLITS
from negatives_gen.verbs.export_file import DATASET_INFO, dataset_info, export_place, is_export_of, rows_writer
from negatives_gen.verbs.export_rows import (
    ALPACA,
    FORMATS,
    LLAMA_FACTORY,
    OF_CHATS,
    SHAREGPT,
    TRL_SFT,
    said,
    schema_of,
)
from negatives_gen.verbs.export_tokens import count_inexact, tokenizer_of

log = logging.getLogger(__name__)

USAGE = "python -m negatives_gen export DIR --format FORMAT --out FILE [--use an=4,bn=3] [--split train]"
ABOUT = """
Write a negative set as texts for another trainer: a row per negative with prompt, chosen and rejected, or, for trl-sft,
a row per group with prompt and completion. Of chats these are messages. Texts have no EOS. Other trainers tokenise
them again, which need not give the ids of the set: the command says for how many rows it does not in TRL.
"""


@dataclass
class ExportConfig:
    """What to write, in which form, and where to."""

    format: str = option(None, ", ".join(FORMATS), required=True, metavar="NAME")
    out: str = option(
        None, "file or URL that ends in .jsonl or .parquet, or a folder for SPLIT.jsonl", required=True, metavar="FILE"
    )
    use: list[str] | None = option(
        None, "negatives of each strategy, the first ones, e.g. an=4,bn=3 (default: all)", metavar="NAME=COUNT"
    )
    split: str = option("train", "groups of which half of the data source: train, test or all", metavar="HALF")
    rank_by: str | None = option(
        None,
        "order a group's rows by this ranking signal, most similar first, those without a value last",
        metavar="SIGNAL",
    )

    def check(self) -> None:
        if self.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise UserError(f"unknown --format '{self.format}'.{did_you_mean(self.format, FORMATS)} Known: {known}.")
        if self.split not in SPLITS:
            raise UserError(f"unknown split '{self.split}'. Use one of {', '.join(SPLITS)}.")
        if self.format == TRL_SFT and (self.use or self.rank_by):
            raise UserError(f"--format {TRL_SFT} writes ground truths only; leave out --use and --rank_by.")


@dataclass
class Exported:
    """File and number of rows that `export` wrote.

    Attributes:
        file: path or URL.
        rows: number of rows.
        inexact: rows whose texts TRL tokenises to other ids than the set's; None if the tokenizer is not to be had.
    """

    file: str
    rows: int
    inexact: int | None


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, ExportConfig, usage=USAGE, about=ABOUT):
        return
    if not argv or argv[0].startswith("-"):
        raise UserError("python -m negatives_gen export needs the negative set: export DIR --format FORMAT --out FILE")
    config = load_config(ExportConfig, argv[1:], command="python -m negatives_gen export")
    start_logging()
    done = export(argv[0], config)
    say(f"{done.file}: {counted(done.rows, 'row')} as {config.format}")
    if done.inexact is None:
        say("The reference model's tokenizer is not where the manifest says: not checked what texts tokenise to.")
    elif done.inexact:
        say(
            f"{counted(done.inexact, 'row')} {'tokenises' if done.inexact == 1 else 'tokenise'} to other ids than the "
            "set's: a negative without EOS gets one, "
            "some ids spell their text otherwise than the tokenizer does, and a chat template may write more behind an "
            "answer."
        )


def export(path: str, config: ExportConfig) -> Exported:
    """Write the texts of a set.

    Raises:
        UserError: no such set, format, split, signal, or not as many negatives; or the place cannot be written. Then
            nothing is written.
    """
    config.check()
    negatives = NegativeSet(resolve_path(path))
    log.info("%s", negatives.summary)
    use = _use(negatives, config.use)
    rank_by = config.rank_by and negatives.manifest.signal_name(config.rank_by)
    if rank_by and rank_by not in negatives.signals:
        raise UserError(
            f"--rank_by asks for '{rank_by}', but negative set '{path}' holds {', '.join(negatives.signals)}."
            f"{did_you_mean(rank_by, negatives.signals)} `extend` adds a signal."
        )
    folder, name = export_place(config.out, config.split)
    if folder.root == real_path(negatives.folder.root):
        raise UserError(f"--out '{config.out}' lies in the negative set itself. Choose another folder.")
    chats = _are_chats(negatives, config.split)
    form = FORMATS[config.format]
    if chats:
        form = OF_CHATS.get(config.format, form)
    columns = schema_of(form, chats)
    refuse_foreign(folder, name, "--out", lambda content: is_export_of(negatives, form, columns, name, content))
    info = dataset_info(folder, name, SHAREGPT if chats else ALPACA) if config.format == LLAMA_FACTORY else None
    tokenizer = tokenizer_of(negatives, chats)
    rows = inexact = 0
    with rows_writer(folder, name, columns) as write:
        for index in range(len(negatives.manifest.shards)):
            groups = [g for g in negatives.shard(index) if config.split in ("all", g.split)]
            pairs = [(g, c) for g in groups for c in _chosen(g, use, rank_by)]
            if config.format == TRL_SFT:
                pairs = [(g, None) for g in groups]
            write([form(*said(g, c)) for g, c in pairs])
            rows += len(pairs)
            inexact += count_inexact(pairs, tokenizer) if tokenizer else 0
        if not rows:
            raise UserError(f"negative set '{path}' holds no groups of split '{config.split}'. Choose another --split.")
    if info is not None:
        folder.write(DATASET_INFO, info)
    return Exported(f"{folder.path.rstrip('/')}/{name}", rows, inexact if tokenizer else None)


def _are_chats(negatives: NegativeSet, split: str) -> bool:
    """Whether the groups of a split are chats. Raises UserError where some are: their rows have other columns."""
    found: set[bool] = set()
    for index in range(len(negatives.manifest.shards)):
        chats, splits = (negatives.peek(index, column) for column in ("messages", "split"))
        found |= {
            chat
            for chat, its in zip(chats.is_valid().to_pylist(), splits.to_pylist(), strict=True)
            if split in ("all", its)
        }
    if len(found) > 1:
        raise UserError(
            f"negative set '{negatives.folder.path}' holds texts and chats, whose rows have different columns. Make a "
            "set of each to export them."
        )
    return found == {True}


def _use(negatives: NegativeSet, chosen: list[str] | None) -> dict[str, int]:
    """How many negatives of which strategy. Raises UserError for more than the set has, or a trainer's way."""
    stored = negatives.manifest.stored
    for part in ",".join(chosen or []).split(","):
        if ":" in part.partition("=")[2]:  # before it, it is one from outside: my.module:NAME=3
            count, _, way = part.rpartition(":")
            raise UserError(
                f"--use '{part.strip()}': ways to choose, as ':{way.strip()}', are the trainer's; an export takes the "
                f"first ones. Write {count.strip()}."
            )
    use = parse_counts(chosen, "--use", negatives.manifest.strategy_name) if chosen else stored
    for strategy, count in use.items():
        if count > stored.get(strategy, 0):
            raise UserError(
                f"--use asks for {strategy}={count}, but negative set '{negatives.folder.path}' holds "
                f"{format_counts(stored)} per group. Ask for less, or `extend` the set."
            )
    return use


def _chosen(group: Group, use: dict[str, int], rank_by: str | None) -> list[Candidate]:
    """The negatives to write: the first of each strategy, as the trainer takes them."""
    chosen: list[Candidate] = []
    for strategy, count in use.items():
        chosen += [c for c in group.negatives if c.strategy == strategy][:count]
    if not rank_by:
        return chosen
    ranked = zip(ranks_of(chosen, rank_by), chosen, strict=True)
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]
