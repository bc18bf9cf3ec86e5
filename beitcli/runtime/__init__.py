"""What jobs stand on: keyed randomness, devices, checkpoints, optimizers, signals."""
