"""Distributed training: launch, rank and world size, collectives, DDP, FSDP2, failure reports."""
