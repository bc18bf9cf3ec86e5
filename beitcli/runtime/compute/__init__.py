"""Devices, attention kernels, torch.compile, optimizer, learning-rate schedules, keyed random numbers."""
