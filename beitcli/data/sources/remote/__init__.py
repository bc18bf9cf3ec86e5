"""Streaming of remote datasets during training."""
