"""What all commands share: options, one-line errors, logging, privacy."""
