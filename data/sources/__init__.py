"""Data sources: files, hubs and the embedded world to examples, prompts, responses and tokens."""
