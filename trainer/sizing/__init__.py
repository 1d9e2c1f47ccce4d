"""What a run will take, predicted without its weights: `--dry_run`."""
