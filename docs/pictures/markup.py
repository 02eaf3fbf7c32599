r"""
---
title: Words in pictures
summary: Numbers and names as SVG writes them, and how wide they will be.
---

# Words in pictures

Names of curves may hold simple mathematics, as `$\beta_2$ = 0.9` does: one letter, perhaps Greek, with an index.
"""

from __future__ import annotations

import re
from html import escape

_GREEK = {r"\alpha": "α", r"\beta": "β", r"\theta": "θ"}

_MATHS = re.compile(r"\$(\\?[A-Za-z]+?)(?:_\{?(\w+)\}?)?\$")


def number(value: float) -> str:
    """## A coordinate: a tenth of a unit is less than anybody sees"""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def plain(value: float) -> str:
    """## A value in words: two digits that count, and no exponent, which is bad to listen to"""
    return f"{float(f'{value:.2g}'):.9f}".rstrip("0").removesuffix(".")


def spoken(text: str) -> str:
    """## A name as plain text"""
    return _MATHS.sub(lambda m: _letter(m) + (m[2] or ""), text)


def set_maths(text: str) -> str:
    """## A name as the inside of a `<text>`: letters in italics, indices lower and smaller"""
    parts, end = [], 0
    for match in _MATHS.finditer(text):
        parts.append(escape(text[end : match.start()]))
        parts.append(f'<tspan font-style="italic">{_letter(match)}</tspan>')
        end = match.end()
        if match[2]:
            # Not every browser knows baseline-shift, so what follows is moved back up.
            parts.append(f'<tspan class="picture-index" dy="3">{escape(match[2])}</tspan>')
            parts.append(f'<tspan dy="-3">{escape(text[end : end + 1])}</tspan>')
            end += 1
    return "".join(parts) + escape(text[end:])


def width(text: str, size: float) -> float:
    """## About how wide a text is in a sans-serif of some size, rather too wide"""
    return size * sum(map(_letter_width, spoken(text)))


def _letter(match: re.Match[str]) -> str:
    return _GREEK.get(match[1], match[1])


def _letter_width(letter: str) -> float:
    if letter in "mwMW":
        return 0.9
    if letter in "fijlrtI.,:;|'’ ":
        return 0.36
    return 0.7 if letter.isupper() else 0.6
