"""The engine: one module per command, which takes a config and `on_event` and returns a report or yields documents."""
