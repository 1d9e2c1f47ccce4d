"""`python -m negatives_gen`: make a negative set; with a verb, work on one."""

import importlib
import sys

from data.command.errors import UserError, did_you_mean, exit_on_user_error
from data.command.log import start_logging
from data.command.options import describe_options, load_config
from negatives_gen.config import GenerateConfig

# Verb -> its module, which has `main(argv)`, and half a line for --help.
VERBS = {
    "extend": ("negatives_gen.verbs.extend", "add strategies, candidates or ranking signals to a set, as a new set"),
    "plan": ("negatives_gen.verbs.plan", "predict tokens, device-hours, shards and bytes of a job"),
    "inspect": ("negatives_gen.verbs.inspect", "show groups side by side, in the terminal or as an HTML page"),
    "stats": ("negatives_gen.verbs.stats", "counts, lengths, similarities and duplicates by strategy"),
    "verify": ("negatives_gen.verbs.verify", "check schema, checksums, counts, ids and log-probabilities"),
    "export": ("negatives_gen.verbs.export", "write the set in the format of another trainer"),
}

HELP = """usage: python -m negatives_gen --config FILE.yaml [--key value ...]
       ray job submit --working-dir . -- python -m negatives_gen --config FILE.yaml [--key value ...]
       python -m negatives_gen VERB ...

Make K-1 negatives per prefix, score them with the reference model, rank them, and write a negative set: Parquet shards
with a manifest. Without a running Ray cluster it starts Ray in this process. The same command goes on where an
interrupted one stopped.

verbs (each has a --help):
{verbs}

options:
{options}
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> int | None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        return _run_verb(argv[0], argv[1:])
    if {"-h", "--help"} & set(argv):
        verbs = "\n".join(f"  {verb:<9} {summary}" for verb, (_, summary) in VERBS.items())
        print(HELP.format(verbs=verbs, options=describe_options(GenerateConfig)))
        return None
    config = load_config(GenerateConfig, argv, command="python -m negatives_gen")
    start_logging(config.log_format)
    from negatives_gen.job.job import generate
    from negatives_gen.job.progress import print_outcome

    print_outcome(generate(config), config.out, config.log_format)
    return None


def _run_verb(verb: str, argv: list[str]) -> int | None:
    if verb not in VERBS:
        raise UserError(
            f"unknown verb '{verb}' of python -m negatives_gen.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}; "
            "without a verb it generates, see --help."
        )
    return importlib.import_module(VERBS[verb][0]).main(argv)


if __name__ == "__main__":
    sys.exit(main())
