"""On-disk caches that runs share: visual tokens, features."""
