"""Opens checkpoints: from a MODEL reference to weights in a network, and back."""
