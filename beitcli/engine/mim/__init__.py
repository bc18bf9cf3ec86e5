"""Masked image modeling: the task, its targets, its token cache."""
