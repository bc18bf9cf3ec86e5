"""Detection: task, finetuning, evaluation, prediction."""
