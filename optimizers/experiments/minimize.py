r"""
---
title: How fast a walk is
summary: Loops of gradient descent from Python, timed side by side - ours, Rust's, numpy's, torch's and scipy's.
---

# How fast a walk is

    python -m optimizers.experiments.minimize

times [`minimize`](../minimize.html) in about a minute:

* **100 steps of Adam** on $f(\theta) = \sum \theta_i^2$, with 128 parameters in float64, $\alpha = 0.001$,
  $\beta = (0.9, 0.999)$, $\epsilon = 10^{-8}$: the whole call from Python, warm, beside [the same loop in
  Rust](rust.html), a loop of numpy and one of `torch.optim`. A published one in Rust takes 40 µs, and 30 µs with the
  update reordered.
* **Until it converges** with $\alpha = 0.01$, from $\theta_0 = 10$: some 3,700 steps.
* **Against L-BFGS** of scipy, on Rosenbrock's function in 2 and in 100 dimensions, and a fit by least squares. Adam is
  made for noisy gradients. Where they are exact, L-BFGS needs far fewer of them, and the table says how many.

All ways of a table [take turns](timing.html), and what counts is the median. `ratio` is their time as a multiple of
that of the first, which is ours. `--seconds` is the time for each table.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize
from threadpoolctl import threadpool_limits

from optimizers import minimize
from optimizers.engines import compiler
from optimizers.experiments.performance import machine
from optimizers.experiments.rust import Rust
from optimizers.experiments.timing import Column, measure

SIZE, TOL = 128, 1e-6
X0 = np.full(SIZE, 10.0)

#: Where a run ends, after how many steps and how many gradients.
Run = Callable[[], tuple[Any, int, int]]


def main(argv: Sequence[str] | None = None) -> int:
    """## Measure and print; the result is the exit code"""
    parser = argparse.ArgumentParser(prog="python -m optimizers.experiments.minimize", description="Time minimize.")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each table, about (default: 10)")
    seconds = parser.parse_args(argv).seconds
    if not 0 < seconds < float("inf"):
        parser.error(f"--seconds must be positive. Received: {seconds}")
    print("\n".join([*machine(), ""]))
    # These problems are small: several threads of torch or of a BLAS would only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            tables(seconds)
    finally:
        torch.set_num_threads(threads)
    return 0


def tables(seconds: float) -> None:
    """## All tables"""
    rust = None
    try:
        rust = Rust()
    except RuntimeError as error:
        print(f"Rust takes no part: {error}\n")
    for title, problem in (("100 steps", Quadratic(0.001, 100)), ("until it converges", Quadratic(0.01, 10_000))):
        print_table(f"{title}, lr={problem.lr}", problem.runs(rust), seconds, problem.value)
    for title, runs, value in against_scipy():
        print_table(title, runs, seconds, value)


def print_table(title: str, runs: dict[str, Run], seconds: float, value: Callable[[Any], float]) -> None:
    """## Time all runs in turns, and print them"""
    print(f"{title}: about {seconds:g} s\n", flush=True)
    ends = {name: run() for name, run in runs.items()}
    columns = [Column(name, run, lambda _: None) for name, run in runs.items()]
    measure(columns, [[]], seconds)
    width, ours = max(map(len, [title, *runs])), columns[0].microseconds
    print(f"| {title:{width}} |  steps | gradients |   f at end |         µs |   ratio |")
    print(f"|{'-' * (width + 2)}|-------:|----------:|-----------:|-----------:|--------:|")
    for column in columns:
        x, steps, gradients = ends[column.name]
        time, ratio = f"{column.microseconds:10,.1f}", f"{column.microseconds / ours:7.1f}"
        name = f"{column.name:{width}}"
        print(f"| {name} | {steps:6} | {gradients:9} | {value(x):10.2g} | {time} | {ratio} |")
    print()


# ## One function, many loops


def twice(x: Any) -> Any:
    r"""### The gradient of $\sum \theta_i^2$"""
    return 2 * x


@dataclass(frozen=True)
class Quadratic:
    """### The same walk by everyone, with a learning rate and a number of steps"""

    lr: float
    steps: int

    @staticmethod
    def value(x: Any) -> float:
        """#### The function"""
        return float(x @ x)

    def runs(self, rust: Rust | None) -> dict[str, Run]:
        """#### Who takes part"""
        address = c_gradients()["twice"]
        runs: dict[str, Run] = {
            "ours": lambda: self.ours(jac=twice),
            "ours, reordered": lambda: self.ours(jac=twice, optimized_update=True),
            "ours, gradient in C": lambda: self.ours(jac=address),
            "ours, gradient by torch": lambda: self.ours(fun=lambda x: x @ x),
        }
        if rust is not None:
            runs["Rust"] = lambda: self.rust(rust, False)
            runs["Rust, reordered"] = lambda: self.rust(rust, True)
        runs["numpy, step by step"] = self.numpy
        runs["torch.optim.Adam"] = self.torch
        runs["scipy L-BFGS-B"] = self.scipy
        return runs

    def ours(self, **arguments: Any) -> tuple[Any, int, int]:
        """#### `minimize`"""
        result = minimize(x0=X0, lr=self.lr, max_steps=self.steps, tol=TOL, **arguments)
        return result.x, result.nit, result.njev

    def rust(self, rust: Rust, reordered: bool) -> tuple[Any, int, int]:
        """#### The baseline"""
        x, steps = rust.minimize(X0, self.lr, self.steps, TOL, reordered)
        return x, steps, steps

    def numpy(self) -> tuple[Any, int, int]:
        """#### A loop of numpy"""
        x, m, v = X0.copy(), np.zeros(SIZE), np.zeros(SIZE)
        for t in range(1, self.steps + 1):
            g = twice(x)
            m = 0.9 * m + 0.1 * g
            v = 0.999 * v + 0.001 * g * g
            delta = self.lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            x -= delta
            if delta @ delta < TOL * TOL:
                break
        return x, t, t

    def torch(self) -> tuple[Any, int, int]:
        """#### A loop with torch's Adam"""
        x = torch.from_numpy(X0.copy())
        optimizer = torch.optim.Adam([x], lr=self.lr)
        steps = 0
        while steps < self.steps:
            before = x.clone()
            x.grad = twice(x)
            optimizer.step()
            steps += 1
            if (x - before).square_().sum() < TOL * TOL:
                break
        return x.numpy(), steps, steps

    def scipy(self) -> tuple[Any, int, int]:
        """#### Another method, for the same minimum"""
        result = optimize.minimize(self.value, X0, jac=twice, method="L-BFGS-B")
        return result.x, result.nit, result.njev


# ## Against L-BFGS


def against_scipy() -> list[tuple[str, dict[str, Run], Callable[[Any], float]]]:
    """### Problems with their runs and their functions"""
    address = c_gradients()["rosenbrock"]
    problems = []
    for size, steps in ((2, 20_000), (100, 50_000)):
        start, rosen, slope = np.resize([-1.2, 1.0], size), optimize.rosen, optimize.rosen_der
        adam = {"lr": 0.05, "max_steps": steps, "tol": 1e-8}
        runs = {
            "ours, gradient in C": _ours(None, start, jac=address, **adam),
            "ours, gradient in Python": _ours(None, start, jac=slope, **adam),
            "scipy L-BFGS-B": _lbfgs(rosen, start, slope),
        }
        problems.append((f"Rosenbrock, {size} dimensions", runs, rosen))
    random = np.random.default_rng(0)
    matrix = random.normal(size=(200, 50))
    goal = matrix @ random.normal(size=50) + 0.1 * random.normal(size=200)

    def misfit(x: Any) -> float:
        apart = matrix @ x - goal
        return float(apart @ apart)

    def its_slope(x: Any) -> Any:
        return 2 * matrix.T @ (matrix @ x - goal)

    start = np.zeros(50)
    runs = {
        "ours, gradient in Python": _ours(None, start, jac=its_slope, lr=0.05, max_steps=5000, tol=1e-8),
        "scipy L-BFGS-B": _lbfgs(misfit, start, its_slope),
    }
    return [*problems, ("least squares, 200 x 50", runs, misfit)]


def _ours(fun: Any, start: Any, **arguments: Any) -> Run:
    def run() -> tuple[Any, int, int]:
        result = minimize(fun, start, **arguments)
        return result.x, result.nit, result.njev

    return run


def _lbfgs(fun: Any, start: Any, slope: Any) -> Run:
    def run() -> tuple[Any, int, int]:
        result = optimize.minimize(fun, start, jac=slope, method="L-BFGS-B")
        return result.x, result.nit, result.njev

    return run


# ## Gradients in C

_GRADIENTS = """\
#include <stdint.h>

static void twice(const double *x, double *grad, int64_t n) {
    for (int64_t i = 0; i < n; i++) grad[i] = 2 * x[i];
}

static void rosenbrock(const double *x, double *grad, int64_t n) {
    for (int64_t i = 0; i < n; i++) grad[i] = 0;
    for (int64_t i = 0; i + 1 < n; i++) {
        const double apart = x[i + 1] - x[i] * x[i];
        grad[i] += -400 * x[i] * apart - 2 * (1 - x[i]);
        grad[i + 1] += 200 * apart;
    }
}

int check(void *unused) { return 0; }

int step(void **addresses) {
    addresses[0] = (void *)twice;
    addresses[1] = (void *)rosenbrock;
    return 0;
}
"""


def c_gradients() -> dict[str, ctypes.c_void_p]:
    """### Gradients that are compiled, as a library of one's own would have them"""
    addresses = (ctypes.c_void_p * 2)()
    compiler.load(_GRADIENTS).step(ctypes.addressof(addresses))
    return {name: ctypes.c_void_p(at) for name, at in zip(("twice", "rosenbrock"), addresses, strict=True)}


if __name__ == "__main__":
    sys.exit(main())
