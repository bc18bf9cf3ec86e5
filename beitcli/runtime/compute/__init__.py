"""Devices, kernels, optimizer, schedules, keyed randomness."""
