"""Semantic segmentation: task, finetuning, evaluation, prediction."""
