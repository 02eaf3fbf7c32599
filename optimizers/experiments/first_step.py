"""
---
title: The first step
summary: How long the first steps take, where kernels must be compiled and where they are already there.
---

# The first step

The first step of a rule compiles its kernel, once per user and machine, and the first of all also
[what looks at the tensors](../engines/c_look.html). Here a process takes a few steps with an empty
cache, and then another process takes them with what the first has left. A step that compiles nothing leaves the
cache as it was, file by file.

SGD with momentum compiles two kernels: in its first step the velocity is made from the gradient, in all others it
moves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import optimizers
from optimizers.experiments.workloads import workloads

STEPS = 3


def first_steps(name: str, options: dict[str, Any]) -> list[str]:
    """## Lines on the first steps in a first and in a second process"""
    lines = [f"{name}, the first {STEPS} steps of an MLP 784-128-10, milliseconds"]
    with tempfile.TemporaryDirectory() as folder:
        kept: dict[str, int] = {}
        for process, cache in (("first", "empty"), ("second", "kept")):
            times = _in_a_process(name, options, folder)
            found = {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.so")}
            compiled = len(found.items() - kept.items())
            shown = "  ".join(f"{1e3 * seconds:8.2f}" for seconds in times)
            lines.append(f"{process + ' process, cache ' + cache:28}{shown}   libraries compiled: {compiled}")
            kept = found
    return lines


def _in_a_process(name: str, options: dict[str, Any], folder: str) -> list[float]:
    command = [sys.executable, "-m", "optimizers.experiments.first_step", name, json.dumps(options)]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OPTIMIZERS_CACHE_DIR": folder, "OMP_NUM_THREADS": threads}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RuntimeError(f"the process that takes the first steps failed:\n{answer.stderr.strip()}")
    times: list[float] = json.loads(answer.stdout)
    return times


def time_steps(name: str, options: dict[str, Any]) -> list[float]:
    """### The seconds of the first steps in this process"""
    workload = workloads()[1]
    params = [p.requires_grad_() for p in workload.draw(seed=1, scale=1.0)]
    optimizer = getattr(optimizers, name)(params, **options, fused=True)
    times = []
    for step in range(STEPS):
        for param, grad in zip(params, workload.draw(seed=2 + step, scale=0.01), strict=True):
            param.grad = grad
        start = perf_counter()
        optimizer.step()
        times.append(perf_counter() - start)
    return times


if __name__ == "__main__":
    print(json.dumps(time_steps(sys.argv[1], json.loads(sys.argv[2]))))
