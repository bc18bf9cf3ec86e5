"""Foreign files of weights, read without running what they hold."""
