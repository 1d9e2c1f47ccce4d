"""Stage 2: trains on the shards of a negative set, with TRL and transformers."""
