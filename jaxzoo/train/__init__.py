"""Training: mesh, loop, optimizers, checkpoints, writers."""
