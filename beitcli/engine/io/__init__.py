"""Inputs and outputs of the commands that go through images one by one."""
