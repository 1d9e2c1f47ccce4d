"""Weight-space ensembles of two models."""
