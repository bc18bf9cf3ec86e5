"""Whether a tokenizer suits images, told from the figures of `beit tokenize --stats`.

| figure | suits | does not suit |
|---|---|---|
| `entropy_share`: entropy of the codes / ln min(V, tokens) | 0.75 or more | below 0.5 |
| share of the most frequent code | 0.1 or 4 / V or less | above 0.4 |
| explained variance, where it has a decoder | 0.5 or more | below 0.25 |
| PSNR, where it has a decoder | at least that of the mean colour of each patch | |

Between the two it is usable; the worst figure decides. What the thresholds rest on: docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from beitcli.escaping import shell_line
from beitcli.runtime.metric_text import counted

Level = Literal["suits", "usable", "does not suit", "cannot tell"]
ENTROPY_SHARE, COMMONEST_SHARE, _EXPLAINED = (0.75, 0.5), (0.1, 0.4), (0.5, 0.25)
# dB of the mean colour of each patch, from which on it errs by less than the rounding of pixels: patches are of one
# colour each, and no tokenizer can do better.
_FLAT_PATCHES = -20 * math.log10(0.5 / 255)
_EVEN = 4  # times its even share 1 / V, a code is not too common
TOKENS_PER_CODE = 4  # fewer tokens do not show how the codes are used
_NAMED = 3  # more inputs than these are not repeated in the command


class Verdict(NamedTuple):
    """Level, and one or two sentences with the reason and the way out."""

    level: Level
    reason: str


def judge(figures: dict[str, Any], inputs: Sequence[str] = ()) -> Verdict:
    """Judges a tokenizer by the document of `Tally`.

    Args:
        inputs: DATA on the command line, for the command that trains another tokenizer.
    """
    codes, per_image = figures["vocab_size"], figures["tokens_per_image"]
    tokens = figures["images"] * per_image
    if not tokens:
        return Verdict("cannot tell", "Whether the tokenizer suits this data cannot be told: no image was read.")
    explained, has_decoder = figures["explained_variance"], figures["mae"] is not None
    if has_decoder and explained is None:
        return Verdict(
            "does not suit",
            f"Nothing can be learned from these tokens: each image is of one colour ({figures['codes_used']} of "
            f"{codes} codes used), and no tokenizer finds more in it. Give other images.",
        )
    if tokens < TOKENS_PER_CODE * codes:
        needed = TOKENS_PER_CODE * codes
        return Verdict(
            "cannot tell",
            f"Whether the tokenizer suits this data cannot be told: {counted(figures['images'], 'image')} "
            f"{'has' if figures['images'] == 1 else 'have'} {tokens:,} tokens, and {codes:,} codes need {needed:,}. "
            f"Give {math.ceil(needed / per_image):,} images or more.",
        )
    faults = _faults(figures)
    if not faults:
        return Verdict("suits", f"The tokenizer suits this data: {_summary(figures)}.")
    fatal = [said for said, is_fatal in faults if is_fatal]
    way_out = f"Train one on this data, or this one longer if it was: {_command(inputs)}"
    if fatal:
        return Verdict("does not suit", f"The tokenizer does not suit this data: {'; '.join(fatal)}. {way_out}")
    said = "; ".join(said for said, _ in faults)
    return Verdict(
        "usable", f"The tokenizer is usable for this data, but {said}. One trained on it may do better. {way_out}"
    )


def _faults(figures: dict[str, Any]) -> list[tuple[str, bool]]:
    """Returns what speaks against it, each with whether it is fatal."""
    found = []
    entropy, common, explained = figures["entropy_share"], figures["commonest_share"], figures["explained_variance"]
    if entropy < ENTROPY_SHARE[0]:
        found.append((f"its codes are used unevenly ({_usage(figures)})", entropy < ENTROPY_SHARE[1]))
    if common > max(COMMONEST_SHARE[0], _EVEN / figures["vocab_size"]):
        found.append((f"{common:.0%} of the tokens are one code", common > COMMONEST_SHARE[1]))
    if explained is not None and explained < _EXPLAINED[0]:
        pictures = f"explain {explained:.0%} of the variance" if explained > 0 else "are worse than one colour an image"
        found.append((f"its pictures {pictures} ({_decibels(figures)})", explained < _EXPLAINED[1]))
    elif _is_worse_than_patch_colours(figures):
        own, plain = figures["psnr"], figures["psnr_patch_mean"]
        found.append((f"one plain colour a patch is closer to the images ({plain:.1f} dB) than its pictures ({own:.1f} "
                      "dB)", False))  # fmt: skip
    return found


def _is_worse_than_patch_colours(figures: dict[str, Any]) -> bool:
    own, plain = figures["psnr"], figures["psnr_patch_mean"]
    return own is not None and plain is not None and own < plain < _FLAT_PATCHES


def _usage(figures: dict[str, Any]) -> str:
    return (
        f"{figures['codes_used']:,} of {figures['vocab_size']:,} codes, perplexity {figures['perplexity']:.1f}, "
        f"{figures['entropy_share']:.0%} of the possible entropy"
    )


def _decibels(figures: dict[str, Any]) -> str:
    own = "no error" if figures["psnr"] is None else f"{figures['psnr']:.1f} dB"
    plain = figures["psnr_patch_mean"]
    a_patch = "no error" if plain is None or plain >= _FLAT_PATCHES else f"{plain:.1f} dB"
    return f"{own}; one colour an image: {figures['psnr_image_mean']:.1f} dB, a patch: {a_patch}"


def _summary(figures: dict[str, Any]) -> str:
    said = f"{_usage(figures)}, the most frequent code {figures['commonest_share']:.1%} of the tokens"
    if figures["explained_variance"] is None:
        return f"{said}; it has no decoder, so pictures were not compared"
    return f"{said}; its pictures explain {figures['explained_variance']:.0%} of the variance ({_decibels(figures)})"


def _command(inputs: Sequence[str]) -> str:
    named = inputs if 0 < len(inputs) <= _NAMED and "-" not in inputs else ("DATA",)
    return f"beit train-tokenizer {shell_line(named)} --recipe small --out runs/tokenizer"
