"""`python -m negatives_gen`: make a negative set."""

import sys

from data.config import describe_options, load_config
from data.errors import UserError, exit_on_user_error
from data.log import start_logging
from negatives_gen.config import GenerateConfig

HELP = """usage: python -m negatives_gen --config FILE.yaml [--key value ...]
       ray job submit --working-dir . -- python -m negatives_gen --config FILE.yaml [--key value ...]

Sample K-1 negatives per prefix from the reference model with vLLM, score and embed them, and write a negative set:
Parquet shards with a manifest. Without a running Ray cluster it starts Ray in this process. The same command goes on
where an interrupted one stopped.

options:
{options}
"""


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(HELP.format(options=describe_options(GenerateConfig)))
        return
    if argv and not argv[0].startswith("-"):
        raise UserError(
            f"unknown verb '{argv[0]}' of python -m negatives_gen; without a verb it generates, see --help."
        )
    config = load_config(GenerateConfig, argv, command="python -m negatives_gen")
    start_logging()
    from negatives_gen.job import generate

    manifest = generate(config)
    counts = manifest.counts
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by_reason"].items())
    print(
        f"{counts['rows_read']} rows read, {counts['rows_written']} groups written, {counts['rows_rejected']} rejected"
        + (f" ({reasons})" if reasons else "")
    )
    print(f"negative set: {config.out}")


if __name__ == "__main__":
    sys.exit(main())
