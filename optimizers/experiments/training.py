r"""
---
title: The training loop
summary: Models, mini-batches by index, and a loop that trains several runs side by side.
---

# The training loop

A `Run` is a model, its optimizer and its mini-batches, with what was measured. `train` takes several
and trains them in turns, epoch by epoch, so that whatever else the machine does meets them alike. Two runs that
start from copies of one model and see the same batches differ in their optimizer only.

What is timed: an epoch, with everything that makes it (batches, forward, backward and step, but not
validation), and within it each call of `step()`. Losses stay tensors until the epoch is over.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from labml import monit, tracker
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from optimizers.experiments.console import is_shown, readable_output
from optimizers.experiments.data import Dataset

#: What gives the mini-batches of the next epoch.
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

#: Steps from one estimate of the curvature to the next, as in the paper of Sophia.
CURVATURE_EVERY = 10


class Together:
    """## Optimizers of different parameters that step as one"""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, one after the other."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass
class Run:
    """
    ## One model in training

    `losses` has one row an epoch, with the loss of every mini-batch; `valid_losses` and `valid_accuracies` have
    one number an epoch. Times are in seconds. `generator` draws the labels that [Sophia](../sophia.html) needs.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer | Together
    batches: Batches
    losses: list[list[float]] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    valid_accuracies: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def train_epoch(self) -> None:
        """### One pass over the training data"""
        losses = []
        self.model.train()
        start = perf_counter()
        for images, labels in self.batches():
            if hasattr(self.optimizer, "update_hessian") and len(self.step_seconds) % CURVATURE_EVERY == 0:
                self._update_hessian(images)
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            step_start = perf_counter()
            self.optimizer.step()
            self.step_seconds.append(perf_counter() - step_start)
            losses.append(loss.detach())
        self.epoch_seconds.append(perf_counter() - start)
        self.losses.append(torch.stack(losses).tolist())

    def _update_hessian(self, images: Tensor) -> None:
        """### The curvature, from the gradient against labels drawn from what the model says"""
        scores = self.model(images)
        labels = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=self.generator).squeeze(1)
        self.optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.update_hessian(n_tokens=len(labels))  # type: ignore[union-attr]

    def validate(self, data: Dataset) -> None:
        """### Loss and accuracy on the validation data"""
        loss, accuracy = evaluate(self.model, data.valid_images, data.valid_labels)
        self.valid_losses.append(loss)
        self.valid_accuracies.append(accuracy)

    @property
    def mean_losses(self) -> list[float]:
        """### The mean training loss of each epoch"""
        return [sum(losses) / len(losses) for losses in self.losses]

    @property
    def step_share(self) -> float:
        """### The share of the training time spent in `step()`"""
        return sum(self.step_seconds) / sum(self.epoch_seconds)


def train(runs: list[Run], data: Dataset, epochs: int) -> None:
    """
    ## Train the runs in turns, and show how it goes

    The order changes with every epoch, so that no run is always the first.
    """
    with readable_output(), suitable_threads(data):
        for epoch in monit.loop(range(1, epochs + 1), is_print_iteration_time=False):
            for run in runs if epoch % 2 else reversed(runs):
                run.train_epoch()
                run.validate(data)
            tracker.add(_indicators(runs))
            tracker.save()
            if is_shown(epoch, epochs):
                tracker.new_line()


@contextlib.contextmanager
def suitable_threads(data: Dataset) -> Iterator[None]:
    """
    ## One thread where images are tiny

    There is too little to share out: a second thread gains nothing, and on a busy machine both wait for each other for
    ten times as long as they work.
    """
    before = torch.get_num_threads()
    if data.train_images[0].numel() <= 256:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _indicators(runs: list[Run]) -> dict[str, float]:
    """### What fits into a line: all of one run, the losses of two, the range of the losses of more"""
    if len(runs) == 1:
        run = runs[0]
        accuracy = 100 * run.valid_accuracies[-1]
        return {"loss": run.mean_losses[-1], "valid.loss": run.valid_losses[-1], "valid.accuracy": accuracy}
    losses = {run.name: run.mean_losses[-1] for run in runs}
    if len(runs) == 2:
        return {f"{name}.loss": loss for name, loss in losses.items()}
    finite = [loss for loss in losses.values() if math.isfinite(loss)] or [math.nan]
    return {"lowest.loss": min(finite), "highest.loss": max(finite)}


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """## Mean loss and accuracy over all rows, the accuracy in $[0, 1]$"""
    model.eval()
    loss, hits = 0.0, 0
    for rows, targets in zip(torch.split(images, 4096), torch.split(labels, 4096), strict=True):
        scores = model(rows)
        loss += F.cross_entropy(scores, targets, reduction="sum").item()
        hits += int((scores.argmax(dim=1) == targets).sum())
    return loss / len(labels), hits / len(labels)


# ## Mini-batches


def index_batches(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> Batches:
    """### Mini-batches by indexing: a new permutation each epoch, cut into pieces"""
    generator = torch.Generator().manual_seed(seed)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(torch.randperm(len(labels), generator=generator), batch_size):
            yield images[rows], labels[rows]

    return epoch


def loader_batches(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> Batches:
    """### Mini-batches the usual way: `DataLoader` collects them row by row"""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, generator=generator)
    return lambda: loader


# ## Models


def make_model(kind: str, data: Dataset, seed: int) -> nn.Module:
    """### A model for the images, its parameters drawn from `seed`; torch's own generator is left as it was"""
    height, width = data.train_images.shape[-2:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cnn(height, width) if kind == "cnn" else mlp(height * width)


def mlp(pixels: int) -> nn.Module:
    """### One hidden layer of 128"""
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn(height: int, width: int) -> nn.Module:
    """### Two convolutions, each halving the image, and a linear layer"""
    if min(height, width) < 4:
        raise ValueError(f"The cnn halves an image twice, so it needs 4 x 4 pixels. Received: {height} x {width}")
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 10)),
    )


def twin_of(model: nn.Module) -> nn.Module:
    """### A copy that starts from the same parameters"""
    return copy.deepcopy(model)
