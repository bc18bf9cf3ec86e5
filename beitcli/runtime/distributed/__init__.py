"""Several processes: launch, ranks, collectives, sharding, failures."""
