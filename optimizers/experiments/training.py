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

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from time import perf_counter

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


@dataclass
class Run:
    """
    ## One model in training

    `losses` has one row an epoch, with the loss of every mini-batch; `valid_losses` and `valid_accuracies` have
    one number an epoch. Times are in seconds.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer
    batches: Batches
    losses: list[list[float]] = field(default_factory=list)
    valid_losses: list[float] = field(default_factory=list)
    valid_accuracies: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def train_epoch(self) -> None:
        """### One pass over the training data"""
        losses = []
        self.model.train()
        start = perf_counter()
        for images, labels in self.batches():
            loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            step_start = perf_counter()
            self.optimizer.step()
            self.step_seconds.append(perf_counter() - step_start)
            losses.append(loss.detach())
        self.epoch_seconds.append(perf_counter() - start)
        self.losses.append(torch.stack(losses).tolist())

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
    with readable_output():
        for epoch in monit.loop(range(1, epochs + 1), is_print_iteration_time=False):
            for run in runs if epoch % 2 else reversed(runs):
                run.train_epoch()
                run.validate(data)
            for run in runs:
                tracker.add(_indicators(run, prefix=f"{run.name}." if len(runs) > 1 else ""))
            tracker.save()
            if is_shown(epoch, epochs):
                tracker.new_line()


def _indicators(run: Run, prefix: str) -> dict[str, float]:
    if prefix:
        return {f"{prefix}loss": run.mean_losses[-1]}
    accuracy = 100 * run.valid_accuracies[-1]
    return {"loss": run.mean_losses[-1], "valid.loss": run.valid_losses[-1], "valid.accuracy": accuracy}


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
