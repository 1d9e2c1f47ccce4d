"""`make gpu`, `python -m tests.gpu.prove`: what only a GPU can show, in parts, with one record of all of them."""
