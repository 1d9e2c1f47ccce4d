"""`python -m negatives_gen`: make a negative set; with a verb, work on one."""

import sys

from data.command.console import run_verb, verbs_text
from data.command.errors import exit_on_user_error
from data.command.log import start_logging
from data.command.options import load_config
from data.command.terminated import ending_on_sigterm
from data.command.usage import answered
from negatives_gen.config import GenerateConfig

VERBS = {
    "extend": ("negatives_gen.verbs.extend", "add strategies, candidates or ranking signals to a set, as a new set"),
    "plan": ("negatives_gen.verbs.plan", "predict tokens, device-hours, shards and bytes of a job"),
    "inspect": ("negatives_gen.verbs.inspect", "show groups of a set, in the terminal or as an HTML page"),
    "stats": ("negatives_gen.verbs.stats", "counts, lengths, similarities and duplicates by strategy"),
    "verify": ("negatives_gen.verbs.verify", "check a set: schema, checksums, counts, ids and log-probabilities"),
    "export": ("negatives_gen.verbs.export", "write a set in the format of another trainer"),
}

COMMAND = "python -m negatives_gen"
USAGE = f"""
{COMMAND} --config FILE.yaml [--key value ...]
ray job submit --working-dir . -- {COMMAND} --config FILE.yaml [--key value ...]
{COMMAND} VERB ...
"""
ABOUT = f"""
Make K-1 negatives per prefix, score them with the reference model, rank them, and write a negative set: Parquet shards
with a manifest. Without a running Ray cluster it starts Ray in this process. The same command goes on where an
interrupted one stopped.

verbs (each has a --help):
{verbs_text(VERBS)}
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return run_verb(argv, VERBS, command=COMMAND, alone="it generates")
    if answered(argv, GenerateConfig, usage=USAGE, about=ABOUT):
        return None
    config = load_config(GenerateConfig, argv, command=COMMAND)
    start_logging(config.log_format)
    from negatives_gen.job.job import generate
    from negatives_gen.job.progress import print_outcome

    with ending_on_sigterm():
        manifest = generate(config)
    print_outcome(manifest, config.out, config.log_format)
    return None


if __name__ == "__main__":
    sys.exit(main())
