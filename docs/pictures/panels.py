"""
---
title: The pictures of a rule
summary: Its three paths and its loss, beside those of its companions.
---

# The pictures of a rule

What the words say of a run is calculated from the run, so it stays true when a rule or a rate changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from docs.pictures import losses, paths
from docs.pictures.axes import Axis
from docs.pictures.contours import contours
from docs.pictures.entries import all_entries, listed, series
from docs.pictures.picture import Picture
from docs.pictures.surfaces import Point, Surface
from docs.pictures.svg import Chart, Line
from optimizers.experiments.training import CURVATURE_EVERY

#: So many steps from dot to dot.
_DOTS_EVERY = 10

#: What must be known of a rule, to read its pictures.
_ON_SURFACES = {
    "AdamFP16": "The parameters are in float16.",
    "ASGD": "What is drawn is the point itself, not the mean.",
    "Sophia": "The curvature is told exactly, before each step.",
}
_ON_DIGITS = {
    "AdamFP16": "The parameters are in float16.",
    "ASGD": "The loss is that of the parameters, not of their mean.",
    "Sophia": f"The curvature is estimated every {CURVATURE_EVERY} steps.",
}


def path_picture(surface: Surface, walks: Mapping[str, Sequence[Point]]) -> Picture:
    """## The paths of some entries over a surface; the first is the one that the page is about"""
    first = next(iter(walks))
    name = f"{all_entries()[first].page}-{surface.name}"
    alt = f"{surface.title} with the paths of {listed(walks)}. {path_words(surface, walks)}"
    lines = [
        Line(entry, [x for x, _ in path], [y for _, y in path], series(entry, first), _DOTS_EVERY)
        for entry, path in walks.items()
    ]
    chart = Chart(
        name=name,
        title=surface.title,
        alt=alt,
        x=Axis(*surface.x),
        y=Axis(*surface.y),
        lines=lines,
        contours=contours(surface),
        starts=[surface.start],
        goals=surface.minima,
        grid=False,
    )
    minima = "cross is the minimum" if len(surface.minima) == 1 else "crosses are the minima"
    caption = (
        f"{surface.lesson} {paths.STEPS} steps on {surface.formula}, a dot every {_DOTS_EVERY}; the ring is the "
        f"start, the {minima}. {_made(walks, surface.name, paths.STEPS)}"
    )
    return Picture(name, chart.svg(), alt, caption)


def path_words(surface: Surface, walks: Mapping[str, Sequence[Point]]) -> str:
    """### Who comes near the minimum, when, and how far the others are from it at the end"""
    arrivals = {name: paths.arrival(surface, path) for name, path in walks.items()}
    there = sorted((step, name) for name, step in arrivals.items() if step is not None)
    words = [f"{name} from step {step}" for step, name in there]
    near = [f"Within {paths.NEAR:g} of a minimum and staying: {', '.join(words)}."] if there else []
    far = [
        f"{name} ends {surface.distance(walks[name][-1]):.2g} away." for name, step in arrivals.items() if step is None
    ]
    return " ".join(near + far)


def loss_picture(curves: Mapping[str, Sequence[float]], lowest: float) -> Picture:
    """## The losses of some entries on digits, the page's first; `lowest` is the lower end for all pages"""
    first = next(iter(curves))
    name = f"{all_entries()[first].page}-digits"
    alt = f"Training loss on digits by step, falling from {next(iter(curves.values()))[0]:.2g}. {loss_words(curves)}"
    steps = range(0, losses.STEPS + 1, losses.LOOK_EVERY)
    chart = Chart(
        name=name,
        title="Training loss on digits",
        alt=alt,
        x=Axis(0, losses.STEPS, "step"),
        y=Axis(lowest, 4.0, log=True),
        lines=[Line(entry, steps, curve, series(entry, first)) for entry, curve in curves.items()],
    )
    caption = (
        f"The loss (cross entropy, nats) of a network with one hidden layer of {losses.HIDDEN} on {losses.ROWS} of "
        f"scikit-learn's digits: the same start and mini-batches of {losses.BATCH} for all, measured on all rows "
        f"every {losses.LOOK_EVERY} steps. {_made(curves, 'digits', losses.STEPS)}"
    )
    return Picture(name, chart.svg(), alt, caption)


def loss_words(curves: Mapping[str, Sequence[float]]) -> str:
    """### The losses at the end, the lowest first"""
    ends = sorted((curve[-1] if math.isfinite(curve[-1]) else math.inf, name) for name, curve in curves.items())
    return f"At step {losses.STEPS}: {', '.join(f'{name} {end:.2g}' for end, name in ends)}."


def _made(names: Iterable[str], problem: str, steps: int) -> str:
    """### How each was made, and what is special about it"""
    calls = listed([f"`{all_entries()[name].call(problem, steps)}`" for name in names])
    notes = _ON_DIGITS if problem == "digits" else _ON_SURFACES
    return " ".join([f"Drawn: {calls}.", *(notes[name] for name in names if name in notes)])
