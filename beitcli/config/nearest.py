"""The known name that a misspelt one stands for (stdlib only).

A proposal is a typing error away, or the word is a whole part of it. A name that is merely similar is none: a folder
that nobody meant is worse than no proposal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SEPARATORS = re.compile(r"[-_. ]+")
_FEWEST = 3  # letters, below which every word is close to every other


def suggestion(word: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Returns `Did you mean 'x'?`, or an empty string.

    Args:
        prefix: Common prefix of the candidates, for the output; it is not compared.
    """
    near = nearest(word, candidates)
    return f"Did you mean '{prefix}{near}'?" if near is not None else ""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that `word` is a typing error of; None if there is none.

    The errors are letters left out, added, replaced or swapped with the next: 1 in words below 8 letters, or 2 that
    only move letters; 2 below 13, and 3 in longer words. Case and hyphens do not matter. Without such a candidate it
    is the only one that has all parts of `word`: `masked` is `num-masked`.
    """
    names, plain = list(dict.fromkeys(candidates)), _letters(word)
    if len(plain) < _FEWEST:
        return next((name for name in names if _letters(name) == plain), None)
    near = [(errors, name) for name in names if (errors := _errors(plain, _letters(name))) is not None]
    if near:
        return min(near, key=lambda pair: pair[0])[1]
    parts = _parts(word)
    wider = [name for name in names if parts <= _parts(name)]
    return wider[0] if len(wider) == 1 else None


def _letters(word: str) -> str:
    return re.sub("[-_ ]", "", word.casefold())


def _parts(word: str) -> set[str]:
    return set(_SEPARATORS.split(word.lstrip("-").casefold()))


def _errors(word: str, name: str) -> int | None:
    """Returns the number of typing errors between two words; None if they are more than is plausible."""
    most = 1 if len(word) < 8 else 2 if len(word) < 13 else 3
    if sorted(word) == sorted(name):
        most = max(most, 2)
    if abs(len(word) - len(name)) > most or len(set(word) ^ set(name)) > 2 * most:  # quick, for folders of many files
        return None
    errors = _distance(word, name)
    return errors if errors <= most else None


def _distance(one: str, other: str) -> int:
    """Returns the edits from one word to the other, a swap of neighbours counted as one (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [i]
        for j, each in enumerate(other, start=1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != each))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == each:
                edits = min(edits, earlier[j - 2] + 1)
            row.append(edits)
    return row[-1]
