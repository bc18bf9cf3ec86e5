"""Run folders and checkpoints on disk."""
