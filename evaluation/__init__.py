"""Stage 3: compares checkpoints on held-out prompts and held-out groups."""
