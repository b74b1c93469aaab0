"""The run folder: names, files that are whole or not there, locks, checkpoints, results."""
