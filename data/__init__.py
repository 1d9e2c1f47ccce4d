"""The contract between the stages: schema, manifest, shards, data sources and prompt templates.

Imports neither torch nor ray nor vllm nor trl, so every other room can build on it.
"""
