"""Inputs and outputs of commands that process images one by one."""
