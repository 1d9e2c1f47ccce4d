"""Who wins: judges and their verdicts."""
