"""Classification: task, finetuning, evaluation, prediction."""
