"""From a checkpoint to files that run elsewhere."""
