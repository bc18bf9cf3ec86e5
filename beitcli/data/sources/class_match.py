"""Refuses data with classes that the model, or the data to learn from, has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from beitcli.errors import DataError

_SHOWN = 3  # names


def refuse_unknown(
    classes: Sequence[str], known: Sequence[str], name: str, *, others: Iterable[str] = (), is_val: bool = False
) -> None:
    """Raises DataError if classes of some data are none of the known ones.

    Args:
        known: Of the model, or with `is_val` of DATA, whose classes a finetuning learns.
        name: What the message calls the data: its path, `--val 'PATH'`.
        others: Further names by which the model knows its classes.
    """
    accepted = {*known, *others}
    unknown = [each for each in classes if each not in accepted]
    if not unknown:
        return
    there = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else ".")
    first = f"{'the first' if len(unknown) > 1 else 'namely'}: '{unknown[0]}'"
    if is_val:
        what = f"{len(unknown):,} class{'es' if len(unknown) > 1 else ''}"
        raise DataError(
            f"{name} has {what} that DATA does not have, {first}. DATA has: {there}",
            "Name the classes there as in DATA, or give other data to measure on.",
        )
    raise DataError(
        f"The model does not know {len(unknown):,} of the {len(classes):,} classes of {name}, {first}. "
        f"It knows {len(known):,}: {there}",
        "Name the classes as in training, or finetune on this data.",
    )
