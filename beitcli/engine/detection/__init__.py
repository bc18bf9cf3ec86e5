"""Object detection: task, finetuning, evaluation, prediction."""
