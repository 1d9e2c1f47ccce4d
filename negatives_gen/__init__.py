"""Stage 1: a Ray + vLLM job that makes a negative set once, for any number of training runs."""
