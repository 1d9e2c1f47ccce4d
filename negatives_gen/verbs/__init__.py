"""Work on a negative set that is there: the verbs of `python -m negatives_gen`."""
