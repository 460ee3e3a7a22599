"""Training: the loop, its batches, checkpoints, averages and logs."""
