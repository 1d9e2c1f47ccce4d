"""README and docs/: links, command lines, Python, rows of data and tables agree with what is there."""
