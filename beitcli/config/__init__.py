"""Configuration: one frozen dataclass per command, merged from recipe, TOML, environment and flags (stdlib only)."""
