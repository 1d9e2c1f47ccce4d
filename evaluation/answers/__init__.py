"""Checkpoints, prompts and the answers that are kept."""
