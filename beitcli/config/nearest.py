"""The known name that a misspelt one stands for (stdlib only).

A proposal is a typing error away, or the word is a whole part of it. A name that is merely similar is none: a folder
that nobody meant is worse than no proposal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

_SEPARATORS = re.compile(r"[-_. ]+")
_DIGITS = re.compile("[0-9]+")
_MOST_NAMES = 20_000
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

    Of several that are equally near it is the first. There is none where some of those differ in digits alone, as the
    files of a numbered folder do: any of them may be meant.

    Args:
        candidates: Of which the first 20,000 are looked at.
    """
    names, plain = list(dict.fromkeys(islice(candidates, _MOST_NAMES))), _letters(word)
    letters = {name: _letters(name) for name in names}
    same = next((name for name in names if letters[name] == plain), None)
    if same is not None or len(plain) < _FEWEST:
        return same
    near = _nearest_of(plain, letters)
    if near:
        return near[0] if len({_DIGITS.sub("", letters[name]) for name in near}) == len(near) else None
    parts = _parts(word)
    wider = list(islice((name for name in names if parts <= _parts(name)), 2))
    return wider[0] if len(wider) == 1 else None


def _nearest_of(plain: str, letters: Mapping[str, str]) -> list[str]:
    """Returns the names with the fewest typing errors; two are enough where they have one and differ in digits alone.

    Args:
        letters: Of each name, none of which equals `plain`.
    """
    near: list[str] = []
    fewest: int | None = None
    for name, other in letters.items():
        errors = _errors(plain, other, fewest)
        if errors is None:
            continue
        if errors != fewest:
            near, fewest = [], errors
        near.append(name)
        if errors == 1 and len(near) > 1 and _DIGITS.sub("", other) == _DIGITS.sub("", letters[near[0]]):
            break
    return near


def _letters(word: str) -> str:
    return re.sub("[-_ ]", "", word.casefold())


def _parts(word: str) -> set[str]:
    return set(_SEPARATORS.split(word.lstrip("-").casefold()))


def _errors(word: str, name: str, fewest: int | None = None) -> int | None:
    """Returns the number of typing errors between two words; None if they are more than is plausible, or `fewest`."""
    most = 1 if len(word) < 8 else 2 if len(word) < 13 else 3
    if most < 2 and len(word) == len(name) and sorted(word) == sorted(name):
        most = 2
    most = most if fewest is None else min(most, fewest)
    if abs(len(word) - len(name)) > most or len(set(word) ^ set(name)) > 2 * most:  # quick, for folders of many files
        return None
    if sum(max(0, word.count(letter) - name.count(letter)) for letter in set(word)) > most:  # lacking
        return None
    return _distance(word, name, most)


def _distance(one: str, other: str, most: int) -> int | None:
    """Returns the edits from one word to the other, a swap of neighbours counted as one; None if more than `most`.

    Optimal string alignment, of what is between the same beginning and the same end, in the band that `most` allows.
    """
    begin, end, shorter = 0, 0, min(len(one), len(other))
    while begin < shorter and one[begin] == other[begin]:
        begin += 1
    while end < shorter - begin and one[-1 - end] == other[-1 - end]:
        end += 1
    one, other = one[begin : len(one) - end], other[begin : len(other) - end]
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        earlier, before, row = before, row, [i] + [most + 1] * len(other)
        for j in range(max(1, i - most), min(len(other), i + most) + 1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other[j - 1]))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == other[j - 1]:
                edits = min(edits, earlier[j - 2] + 1)
            row[j] = edits
        if min(row) > most:
            return None
    return row[-1] if row[-1] <= most else None
