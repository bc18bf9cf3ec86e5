"""Masked image modelling: the task, its targets, its token cache."""
