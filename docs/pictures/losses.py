"""
---
title: Losses on digits
summary: A small network trained with each rule from the same start, all networks computed as one.
---

# Losses on digits

The network has a hidden layer of 16 and no biases: two matrices, so that [Muon](../../optimizers/muon.py) can take
all of it. All rules start from the same numbers and see the same mini-batches.

Twenty networks of this size one after the other are twenty times the overhead of a call. So those of all rules lie
in one tensor for each layer, and are computed at once. A rule is given its slices as parameters, and can't tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from docs.pictures.digits import first_digits
from docs.pictures.entries import Entry
from docs.pictures.threads import one_thread
from optimizers import AdamFP16
from optimizers.experiments.training import CURVATURE_EVERY

ROWS, BATCH, HIDDEN, STEPS = 480, 48, 16, 80

#: Steps from one look at the loss on all rows to the next.
LOOK_EVERY = 4


class _Runner:
    """## One network: the slices that are its layers, the parameters that its rule moves, and the rule"""

    def __init__(self, entry: Entry, rate: float, layers: list[Tensor]) -> None:
        self.layers = layers
        # The one rule that is for half precision is given what it is for.
        self.params = [layer.half() for layer in layers] if entry.rule is AdamFP16 else layers
        self.optimizer = entry.optimizer([self.params], [rate], entry.run_options("digits", STEPS))

    def take(self, grads: Sequence[Tensor]) -> None:
        """### Have gradients in the dtype of the parameters"""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad.to(param.dtype)

    def step(self, grads: Sequence[Tensor]) -> None:
        """### Have gradients, and move by them"""
        self.take(grads)
        self.optimizer.step()
        if self.params is not self.layers:
            for layer, param in zip(self.layers, self.params, strict=True):
                layer.copy_(param)

    def look_at_curvature(self, images: Tensor, generator: torch.Generator) -> None:
        """### Where the rule asks for it, as Sophia does: by labels drawn from what the network says"""
        if not hasattr(self.optimizer, "update_hessian"):
            return
        layers = [layer[None] for layer in self.layers]
        drawn = torch.multinomial(_scores(layers, images)[0].softmax(dim=1), 1, generator=generator)
        self.take([grad[0] for grad in _gradients(layers, images, drawn.squeeze(1))])
        self.optimizer.update_hessian(n_tokens=len(images))


@one_thread()
def train(entries: Sequence[Entry], rates: Sequence[float]) -> list[list[float]]:
    """## The mean loss on all rows for each entry, at the start and after every few steps"""
    images, labels = first_digits(ROWS)
    shuffles, draws = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    layers = [_copies(fan_in, fan_out, len(entries), shuffles) for fan_in, fan_out in ((64, HIDDEN), (HIDDEN, 10))]
    runners = [
        _Runner(entry, rate, [layer[index] for layer in layers])
        for index, (entry, rate) in enumerate(zip(entries, rates, strict=True))
    ]
    looks = [_losses(layers, images, labels).tolist()]
    for step in range(STEPS):
        if step % (ROWS // BATCH) == 0:
            batches = torch.split(torch.randperm(ROWS, generator=shuffles), BATCH)
        rows = batches[step % len(batches)]
        if step % CURVATURE_EVERY == 0:
            for runner in runners:
                runner.look_at_curvature(images[rows], draws)
        grads = (grad.unbind() for grad in _gradients(layers, images[rows], labels[rows]))
        for runner, own in zip(runners, zip(*grads, strict=True), strict=True):
            runner.step(own)
        if (step + 1) % LOOK_EVERY == 0:
            looks.append(_losses(layers, images, labels).tolist())
    return [list(curve) for curve in zip(*looks, strict=True)]


def _copies(fan_in: int, fan_out: int, copies: int, generator: torch.Generator) -> Tensor:
    """### One matrix, many times: `[copies, fan_in, fan_out]`, with the usual scale for a ReLU"""
    matrix = torch.randn(fan_in, fan_out, generator=generator) * math.sqrt(2 / fan_in)
    return matrix.repeat(copies, 1, 1)


def _scores(layers: Sequence[Tensor], images: Tensor) -> Tensor:
    """### What all networks say of all images: `[networks, images, digits]`"""
    first, second = layers
    return (images @ first).relu() @ second


def _losses(layers: Sequence[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """### The mean loss of each network"""
    scores = _scores(layers, images)
    return F.cross_entropy(scores.movedim(0, -1), labels[:, None].expand(-1, len(scores)), reduction="none").mean(dim=0)


def _gradients(layers: Sequence[Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """### By layer, those of all networks. A loss depends on its own network only, so their sum has them all"""
    leaves = [layer.detach().requires_grad_() for layer in layers]
    return torch.autograd.grad(_losses(leaves, images, labels).sum(), leaves)


def floor(curves: Sequence[Sequence[float]]) -> float:
    """## A round value below all losses"""
    least = min(loss for curve in curves for loss in curve if loss > 0)
    decade = 10.0 ** math.floor(math.log10(least))
    return max(decade * digit for digit in (1, 2, 5) if decade * digit <= least)
