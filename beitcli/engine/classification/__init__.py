"""Image classification: task, finetuning, evaluation, prediction."""
