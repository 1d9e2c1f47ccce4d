"""The models that stage 1 and the evaluation run: vLLM's engine, embedders, reward models."""
