"""Evaluation of frozen features: nearest neighbours and linear probes."""
