"""The training loop and what all training jobs share."""
