"""Opens checkpoints of any program: from a MODEL reference to a network with weights, and back for `export`."""
