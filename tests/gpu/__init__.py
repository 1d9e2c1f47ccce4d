"""What needs a GPU: `python -m pytest tests/gpu -s`, with torch, transformers, accelerate, pyarrow and pytest alone."""
