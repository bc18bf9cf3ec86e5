"""Results kept on disk between runs: visual tokens, features."""
