"""The run folder: names, atomic writes, locks, checkpoints, results."""
