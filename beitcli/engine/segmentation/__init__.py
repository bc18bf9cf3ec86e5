"""Segmentation: task, finetuning, evaluation, prediction."""
