"""Training: the scripts, the tasks, the loop, checkpoints and the log of a run."""
