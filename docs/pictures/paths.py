r"""
---
title: Paths
summary: The way of each rule over three surfaces.
---

# Paths

A parameter of shape `[1, 2]` is moved by real steps of a rule, one parameter for each surface in one optimizer. It is a
matrix, so [Muon](../../optimizers/muon.py) takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from docs.pictures.entries import Entry
from docs.pictures.surfaces import SURFACES, Point, Surface
from docs.pictures.threads import one_thread
from optimizers import AdamFP16

STEPS = 60

#: What counts as there.
NEAR = 0.1


@one_thread()
def walk(entry: Entry, rates: Sequence[float], steps: int = STEPS) -> list[list[Point]]:
    """## The points that a rule visits on each surface, the start first"""
    # The one rule for half precision is given what it is for.
    dtype = torch.float16 if entry.rule is AdamFP16 else torch.float64
    params = [torch.tensor([surface.start], dtype=dtype) for surface in SURFACES]
    optimizer = entry.optimizer([[param] for param in params], rates, entry.run_options("surfaces", steps))
    paths = [[_point(param)] for param in params]
    for _ in range(steps):
        if hasattr(optimizer, "update_hessian"):
            # It averages the squares of what it is given, so it is given the roots of the curvature.
            for surface, param, path in zip(SURFACES, params, paths, strict=True):
                curvature = surface.curvature(*path[-1])
                param.grad = torch.tensor([[max(h, 0.0) ** 0.5 for h in curvature]], dtype=dtype)
            optimizer.update_hessian(n_tokens=1)
        for surface, param, path in zip(SURFACES, params, paths, strict=True):
            param.grad = torch.tensor([surface.gradient(*path[-1])], dtype=dtype)
        optimizer.step()
        for param, path in zip(params, paths, strict=True):
            path.append(_point(param))
    return paths


def arrival(surface: Surface, path: Sequence[Point]) -> int | None:
    """## The step from which on a path stays near a minimum, or None"""
    far = [step for step, point in enumerate(path) if not surface.distance(point) < NEAR]
    first = far[-1] + 1 if far else 0
    return first if first < len(path) else None


def _point(param: Tensor) -> Point:
    x, y = param[0].tolist()
    return x, y
