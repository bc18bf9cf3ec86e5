"""Settings as TOML: the config.toml of a run."""

from __future__ import annotations

from typing import Any

from beitcli.config.fields import Setting, settings_of, task_of


def to_toml(value: Any) -> str:
    """Formats a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        escaped = "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped)
        return f'"{escaped}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(to_toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) or "." in repr(value) else repr(value).replace("e", ".0e")
    return str(value)


def setting_text(setting: Setting, config: Any) -> str:
    """Returns the value of a setting as TOML, for a message."""
    value = getattr(config, setting.name)
    return "not set" if value is None else to_toml(setting.plain(value))


def plain_settings(config: Any) -> dict[str, Any]:
    """Returns every saved setting that the config's task uses, as a user would write it."""
    return {
        name: setting.plain(getattr(config, name))
        for name, setting in settings_of(type(config)).items()
        if setting.option.saved and setting.belongs_to(task_of(config))
    }


def dump_toml(config: Any, header: str = "") -> str:
    """Formats a config as TOML: every saved setting that its task uses, defaults included."""
    printable = ["".join(c if c.isprintable() else "?" for c in line) for line in header.splitlines()]
    lines = [f"# {line}" for line in printable] + [f'command = "{config.command}"']
    panels: dict[str, list[str]] = {}
    for name, setting in settings_of(type(config)).items():
        if not setting.option.saved or not setting.belongs_to(task_of(config)):
            continue
        value = setting.plain(getattr(config, name))
        line = f"# {name} is not set" if value is None else f"{name} = {to_toml(value)}"
        panels.setdefault(setting.option.panel, []).append(line)
    for panel, settings in panels.items():
        lines += ["", f"# {panel}", *settings]
    return "\n".join(lines) + "\n"
