"""Settings: one frozen dataclass a job, merged from recipe, file, environment and flags (stdlib only)."""
