"""Chooses one of several networks in a file by name: the key of a state dict (`net_ema`) or a prefix (`teacher.`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from beitcli.errors import StorageError

_AVERAGES = {"ema", "avg", "average", "averaged", "averaging", "swa", "shadow", "momentum"}
_COPIES = (("student", "teacher"), ("momentum_encoder", "base_encoder"))  # left out where the other stands beside


def named(choices: Sequence[str], part: str) -> str | None:
    """Returns the choice that `part` names: exactly, else as the only one with this word in its name; else None.

    Args:
        choices: Keys or prefixes; a final dot does not count.
        part: What the user gave, such as `ema`.
    """
    exact = [each for each in choices if each.rstrip(".") == part.rstrip(".")]
    words = set(_words(part))
    near = [each for each in choices if words and words <= set(_words(each))]
    found = exact or near
    return found[0] if len(found) == 1 else None


def default(choices: Sequence[str]) -> str | None:
    """Returns the only choice that is neither an average nor a copy of another one; None if there are several."""
    left = [each for each in choices if not _is_copy(each, choices)]
    raw = [each for each in left if not is_average(each)]
    return next((each[0] for each in (raw, left) if len(each) == 1), None)


def refusal(origin: str, what: str, choices: Sequence[str]) -> StorageError:
    """Returns the error for a file with several networks; its hint says how to name one.

    Args:
        origin: The file, as the user names it.
        what: What there are several of.
    """
    keys = [each.rstrip(".") or "." for each in choices]
    places = " and ".join(f"'{each}'" if each else "no prefix" for each in choices)
    shown = " or ".join(f"'{origin}#{key}'" for key in keys)
    return StorageError(f"'{origin}' holds {len(keys)} {what}, under {places}.", f"Name one of them: {shown}.")


def unknown(origin: str, part: str, choices: Sequence[str]) -> StorageError:
    """Returns the error for a part that no choice, or more than one, is called."""
    keys = ", ".join(f"'#{each.rstrip('.') or '.'}'" for each in choices)
    hint = f"It has: {keys}." if len(choices) > 1 else f"It holds one network; leave '#{part}' out."
    return StorageError(f"'{origin}' holds no network '{part}', or several.", hint)


def is_average(name: str) -> bool:
    """Whether a key or prefix is called as averaged weights are."""
    return bool(_AVERAGES & set(_words(name)))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if word]


def _is_copy(name: str, choices: Sequence[str]) -> bool:
    return any(copy in name and name.replace(copy, meant) in choices for copy, meant in _COPIES)
