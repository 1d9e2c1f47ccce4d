"""The one place where token sequences become log-probabilities: for stage 1, the trainer and the evaluation."""
