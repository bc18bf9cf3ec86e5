"""What each copy has in common with an earlier image: a group of near copies may hold exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from beitcli.engine.doctor.copies import Copies, CopyKind, Signatures


@dataclass(frozen=True)
class Likeness:
    """A copy and the image that it repeats.

    Attributes:
        member, of: Indices of the copy, and of the earlier image that it has most in common with.
        kind: What they have in common.
        is_apart: Whether the copy is in a later split than the first of its group, and `of` in an earlier one.
    """

    member: int
    of: int
    kind: CopyKind
    is_apart: bool


def likenesses(group: Copies, signatures: Signatures, split_of: Callable[[int], int]) -> list[Likeness]:
    """Returns how each member of a group but the first repeats an earlier one."""
    first, found = group.members[0], []
    digests: tuple[tuple[CopyKind, dict[bytes, int]], ...] = (("bytes", {}), ("pixels", {}))
    for member in group.members:
        split = split_of(member)
        is_apart = split != split_of(first)
        likeness = Likeness(member, first, "near", is_apart)
        for kind, earlier in reversed(digests):
            digest = (signatures.files if kind == "bytes" else signatures.pixels)[member].tobytes()
            of = earlier.setdefault(digest, member)
            if of != member and (not is_apart or split_of(of) < split):
                likeness = Likeness(member, of, kind, is_apart)
        if member != first:
            found.append(likeness)
    return found
