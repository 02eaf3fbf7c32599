"""
---
title: Memory
summary: The peak memory of training, with all gradients at once and with gradients released.
---

# Memory

`python -m optimizers.experiments.memory` trains a deep network of square layers twice, each time in a process of its
own: once as usual, once with [`release_gradients`](../release.html). It prints how far memory rose above what the
process had before it made the network. Activations are small here, so that is the model, its state and its gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import optimizers

RULES = {"Adam": {}, "SGD": {"lr": 1e-3, "momentum": 0.9}, "Adagrad": {}, "SGD, no momentum": {"lr": 1e-3}}
STEPS = 3


def peak(name: str, layers: int, width: int, release: bool) -> float:
    """## The peak of memory of a training run in this process, in MB above where it began"""
    torch.manual_seed(0)
    # Matrix products keep some memory for themselves.
    nn.Linear(width, width)(torch.randn(1, width)).square().mean().backward()
    before = _memory("VmRSS")
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    optimizer = getattr(optimizers, name.split(",")[0])(model.parameters(), **RULES[name])
    if release:
        optimizers.release_gradients(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(1, width)).square().mean().backward()
        optimizer.step()
    return _memory("VmHWM") - before


def _memory(entry: str) -> float:
    """
    The memory of this process in MB: what it has, `VmRSS`, or the most that it has had, `VmHWM`. Where the system has
    no such file, the most that it or what it was started from has had.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 2**10


def _elsewhere(*arguments: object) -> float:
    command = [sys.executable, "-m", "optimizers.experiments.memory", "--one", json.dumps(arguments)]
    # glibc then gives large blocks back at once: the peak is of what is in use, not of what it keeps for later.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"the process that trains failed:\n{answer.stderr.strip()}")
    return float(answer.stdout)


def table(layers: int, width: int) -> list[str]:
    """## The lines of the table"""
    size = 4 * layers * width**2 / 2**20
    lines = [f"peak memory of training {layers} layers of {width}x{width}, {size:.0f} MB of parameters; MB"]
    lines.append(f"{'rule':18}{'as usual':>10}{'released':>10}{'saved':>8}")
    for name in RULES:
        usual, released = (_elsewhere(name, layers, width, release) for release in (False, True))
        lines.append(f"{name:18}{usual:10.0f}{released:10.0f}{1 - released / usual:8.0%}")
    return lines


def main() -> None:
    """## The command"""
    parser = argparse.ArgumentParser(description=__doc__.split("# Memory")[1].strip())
    parser.add_argument("--layers", type=int, default=24, help="how many layers (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="their width (default: %(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(peak(*json.loads(arguments.one)))
        return
    for line in table(arguments.layers, arguments.width):
        print(line)


if __name__ == "__main__":
    main()
