"""
---
title: The pictures of the site
summary: Drawn by the library when the site is built, from real runs.
---

# The pictures of the site

[Each rule's path](paths.py) over [three surfaces](surfaces.py) and [its loss](losses.py) on digits, beside SGD and
Adam, and [the schedules](schedules.py). Runs take a second in all, so nothing is kept: what a page shows is what the
code beside it does.

    python -m docs.pictures --out DIR

writes them as a page to look at.
"""

from __future__ import annotations

from docs.pictures import losses, paths
from docs.pictures.entries import MOMENTUM, PROBLEMS, all_entries, companions, rate
from docs.pictures.panels import loss_picture, path_picture
from docs.pictures.picture import Picture
from docs.pictures.schedules import rectification_picture, schedules_picture
from docs.pictures.surfaces import SURFACES

__all__ = ["Picture", "pictures", "rule_pictures"]


def pictures() -> dict[str, Picture]:
    """## The pictures that a page names, by the name of a file"""
    return {"schedules.svg": schedules_picture(), "rectification.svg": rectification_picture()}


def rule_pictures() -> dict[str, list[Picture]]:
    """## The pictures of each rule, by the name of its page. Each rule runs once, for all pages that show it"""
    walks = {
        name: paths.walk(entry, [rate(name, surface.name) for surface in SURFACES])
        for name, entry in all_entries().items()
    }
    curves = losses.train(list(all_entries().values()), [rate(name, PROBLEMS[-1]) for name in all_entries()])
    by_name = dict(zip(all_entries(), curves, strict=True))
    lowest = losses.floor(curves)
    pages = {}
    for name, entry in all_entries().items():
        if name != MOMENTUM:
            shown = (name, *companions(name))
            panels = [path_picture(s, {n: walks[n][index] for n in shown}) for index, s in enumerate(SURFACES)]
            pages[entry.page] = [*panels, loss_picture({n: by_name[n] for n in shown}, lowest)]
    return pages
