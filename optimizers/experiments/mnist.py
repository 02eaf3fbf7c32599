r"""
---
title: The main job, handwritten digits
summary: Train a network on digits with any rule of the package, alone or beside torch's.
---

# The main job: handwritten digits

    python -m optimizers.experiments.mnist

trains a network with one hidden layer of 128 units on the digits that ship inside scikit-learn. It takes
seconds and reaches 97 % on rows it has not seen. Other ways to run it:

* `--optimizer SGD` takes another rule. Any rule of the package is found by its name, a new one too. It starts from
  its own defaults, or [where those don't suit the digits, from others](recipes.html).
* `--compare` also trains the `torch.optim` class of that name, from the same parameters on the same mini-batches,
  and shows both losses and the time of the steps. `--plot curves.png` draws the losses.
* `--sweep Adam SGD RMSprop`, or `--sweep` alone for all rules, [sets rules side by side](sweep.html).
* `--data DIR` reads the original MNIST files, and `--model cnn` takes a small convolutional network.

## The preset `rust-libtorch`

A small framework written in Rust on top of LibTorch was shown on MNIST with a network of 784-128-10 units,
100 epochs, batches of 128, a learning rate of 0.3 and momentum 0.9 in the form of a moving average,
$v \leftarrow \beta v + (1 - \beta) g$. It trained 5.5 times faster than its author's Python version.

Its velocity was made anew at every call, from zero. So each step moved by $(1 - \beta)\, g$: plain gradient
descent with a tenth of the learning rate, and no momentum at all. Here the velocity persists from step to step, as
[SGD](../sgd.html) with `moving_average=True` has it, which is what was meant.

Beside it the same network trains the usual way: a `TensorDataset`, a `DataLoader`, and `torch.optim.SGD` with
`momentum=0.9, dampening=0.9`, torch's nearest to a moving average (only its first step differs). The two take
turns, and the preset prints the time of an epoch of each. Without `--data` it times 60,000 rows of noise.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import optimizers
from optimizers.experiments import report, sweep
from optimizers.experiments.chart import check_png
from optimizers.experiments.data import Dataset, digits, mnist, noise
from optimizers.experiments.recipes import default_lr, default_options, make_optimizer, rules
from optimizers.experiments.training import Run, index_batches, loader_batches, make_model, train, twin_of

_PRESET = {"optimizer": "SGD", "model": "mlp", "lr": 0.3, "epochs": 100, "batch_size": 128}


def torch_twin(rule: type[Optimizer]) -> type[Optimizer]:
    """## The class of `torch.optim` with the name of a rule. Raises `ValueError` where there is none."""
    twin = getattr(torch.optim, rule.__name__, None)
    if not (isinstance(twin, type) and issubclass(twin, Optimizer)):
        paired = [name for name in rules() if hasattr(torch.optim, name)]
        raise ValueError(
            f"--compare: torch.optim has no {rule.__name__} to compare with. Leave --compare out, or take one "
            f"of {', '.join(paired)}"
        )
    return twin


# ## The runs


def choose_options(rule: type[Optimizer], data: Dataset, args: argparse.Namespace) -> dict[str, Any]:
    """### The keyword arguments of a rule: its recipe for a run of this length, with the learning rate asked for"""
    steps = args.epochs * math.ceil(len(data.train_labels) / args.batch_size)
    lr = default_lr(rule) if args.lr is None else args.lr
    return {**({} if lr is None else {"lr": lr}), **default_options(rule, steps)}


def make_run(name: str, rule: type[Optimizer], model: nn.Module, data: Dataset, args: argparse.Namespace) -> Run:
    """### A run with mini-batches by index"""
    optimizer = make_optimizer(rule, model, choose_options(rule, data, args))
    return Run(name, model, optimizer, index_batches(data.train_images, data.train_labels, args.batch_size, args.seed))


def make_runs(args: argparse.Namespace, data: Dataset) -> list[Run]:
    """### What the arguments ask for: our run and, for `--compare`, its twin from the same start"""
    rule = rules()[args.optimizer]
    model = make_model(args.model, data, args.seed)
    runs = [make_run(args.optimizer, rule, model, data, args)]
    if args.compare:
        runs.append(make_run(f"torch.optim.{args.optimizer}", torch_twin(rule), twin_of(model), data, args))
    return runs


def make_sweep_runs(args: argparse.Namespace, data: Dataset) -> list[Run]:
    """### A run for each rule of the sweep, from the same start"""
    model = make_model(args.model, data, args.seed)
    return [make_run(name, rules()[name], twin_of(model), data, args) for name in args.sweep]


def make_preset_runs(args: argparse.Namespace, data: Dataset) -> list[Run]:
    """### The two runs of the preset: ours, and the usual way"""
    train_set = data.train_images, data.train_labels
    model = make_model("mlp", data, args.seed)
    peer = twin_of(model)
    ours = optimizers.SGD(model.parameters(), lr=args.lr, momentum=0.9, moving_average=True)
    theirs = torch.optim.SGD(peer.parameters(), lr=args.lr, momentum=0.9, dampening=0.9)
    return [
        Run("ours", model, ours, index_batches(*train_set, args.batch_size, args.seed)),
        Run("the usual way", peer, theirs, loader_batches(*train_set, args.batch_size, args.seed)),
    ]


# ## The command line


def main(argv: Sequence[str] | None = None) -> int:
    """### Run the job; the result is the exit code"""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        settle(args)
        data = load(args)
        args.epochs, args.batch_size = args.epochs or data.epochs, args.batch_size or data.batch_size
        make = make_preset_runs if args.preset else make_sweep_runs if args.sweep else make_runs
        runs = make(args, data)
    except ValueError as error:
        parser.error(str(error))
    print_lines(describe(args, data))
    try:
        train(runs, data, args.epochs)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    tell = preset_report if args.preset else sweep_report if args.sweep else job_report
    print_lines(["", *tell(runs, data)])
    if args.plot:
        (sweep if args.sweep else report).plot(runs, f"{describe_model(args, data)} on {data.name}", args.plot)
        print(f"\nloss curves: {args.plot}")
    return 0


def settle(args: argparse.Namespace) -> None:
    """### Fill in the defaults that depend on other arguments, and check before the work what would fail after it"""
    if args.preset:
        if args.optimizer or args.model or args.compare:
            raise ValueError(
                f"--preset {args.preset} sets --optimizer and --model and compares anyway. Leave out those or it"
            )
        for name, value in _PRESET.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    if args.sweep is not None:
        if args.preset or args.optimizer or args.compare:
            raise ValueError("--sweep names the rules and compares them. Leave out --optimizer, --compare and --preset")
        args.sweep = list(dict.fromkeys(args.sweep or ["Adam", *rules()]))
    args.optimizer, args.model = args.optimizer or "Adam", args.model or "mlp"
    if args.lr is None and not args.sweep:
        args.lr = default_lr(rules()[args.optimizer])
    if args.compare:
        torch_twin(rules()[args.optimizer])
    if args.plot:
        check_png(args.plot)


def load(args: argparse.Namespace) -> Dataset:
    """### The data that the arguments ask for"""
    if args.data:
        return mnist(args.data)
    return noise(seed=args.seed) if args.preset else digits()


def describe_model(args: argparse.Namespace, data: Dataset) -> str:
    """### The model, in words"""
    return "CNN" if args.model == "cnn" else f"MLP {data.train_images[0].numel()}-128-10"


def describe(args: argparse.Namespace, data: Dataset) -> list[str]:
    """### What is going to happen"""
    lines = [
        f"{describe_model(args, data)} on {data.name}: {len(data.train_labels):,} rows to train on, "
        f"{len(data.valid_labels):,} to validate with",
        f"{describe_rule(args, data)}; {args.epochs} epochs in batches of {args.batch_size}, seed {args.seed}",
    ]
    if args.preset and not args.data:
        lines.append("No MNIST (--data DIR), so these rows are noise: the times count, the losses don't.")
    return [*lines, ""]


def describe_rule(args: argparse.Namespace, data: Dataset) -> str:
    """### The rule and its options, in words"""
    if args.sweep:
        return f"{len(args.sweep)} rules from one start"
    if args.preset:
        return f"{args.optimizer}, lr {args.lr:g}, moving-average momentum 0.9"
    options = choose_options(rules()[args.optimizer], data, args)
    return ", ".join([args.optimizer, *(f"{name} {value}" for name, value in options.items())])


def job_report(runs: list[Run], data: Dataset) -> list[str]:
    """### The end of the main job"""
    return [*(report.comparison(*runs) if len(runs) == 2 else []), *report.result(runs[0], data)]


def sweep_report(runs: list[Run], data: Dataset) -> list[str]:
    """### The end of a sweep"""
    return sweep.table(runs)


def preset_report(runs: list[Run], data: Dataset) -> list[str]:
    """### The end of the preset: times and, on real data, accuracies"""
    lines = report.epoch_times(*runs)
    if data.name != "noise":
        for run in runs:
            lines += ["", f"{run.name}:", *report.result(run, data)]
    return lines


def print_lines(lines: list[str]) -> None:
    """### Print at once, also into a pipe"""
    print("\n".join(lines), flush=True)


def make_parser() -> argparse.ArgumentParser:
    """### The arguments. What isn't given is None: the data, the rule or the preset decide"""
    parser = argparse.ArgumentParser(
        prog="python -m optimizers.experiments.mnist", description="Train a network on handwritten digits."
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with MNIST's original files (default: scikit-learn's digits)")
    add("--model", choices=["mlp", "cnn"], help="network (default: mlp)")
    add("--optimizer", choices=list(rules()), metavar="NAME", help=f"{', '.join(rules())} (default: Adam)")
    add("--lr", type=positive_number, help="learning rate (default: one that suits the rule)")
    add("--epochs", type=positive_whole_number, help="passes over the data (default: 40 for the digits, 10 for MNIST)")
    add(
        "--batch-size",
        type=positive_whole_number,
        help="rows in a mini-batch (default: 16 for the digits, 128 for MNIST)",
    )
    add("--seed", type=seed_number, default=0, help="for the first parameters and the order of the rows (default: 0)")
    add("--compare", action="store_true", help="also train torch.optim's class of the same name")
    add(
        "--sweep",
        nargs="*",
        choices=list(rules()),
        metavar="NAME",
        help="train these rules from one start, all rules without names, and compare with the first",
    )
    add("--plot", type=Path, metavar="FILE.png", help="draw the loss curves")
    add("--preset", choices=["rust-libtorch"], help="a known experiment, beside the usual way to do it")
    return parser


# argparse names these in its errors.


def positive_number(text: str) -> float:
    """### An argument that is a positive number"""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text}")
    return number


def positive_whole_number(text: str) -> int:
    """### An argument that is a whole number from 1 on"""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return count


def seed_number(text: str) -> int:
    """### An argument that torch takes as a seed"""
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 2^63 - 1. Received: {text}")
    return seed


if __name__ == "__main__":
    sys.exit(main())
