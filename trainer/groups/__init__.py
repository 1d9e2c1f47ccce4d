"""What is trained on: groups of negative sets, chosen, ordered and laid out in batches."""
