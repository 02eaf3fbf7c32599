"""
---
title: A picture
summary: What a page gets.
---

# A picture
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """
    ## A picture with its words

    `svg` is an element for inside a page. `alt` says what is to be seen, in plain text, and stands in the picture too.
    `caption` says in Markdown what was run.
    """

    name: str
    svg: str
    alt: str
    caption: str
