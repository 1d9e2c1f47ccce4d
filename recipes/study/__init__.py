"""The fair study: one YAML per task, what runs it in resumable parts, and what makes its tables."""
