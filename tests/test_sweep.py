"""The sweep: every rule from one start, a table by final loss, and a picture in which each curve can be found."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import optimizers
from optimizers.experiments import mnist as job
from optimizers.experiments import sweep
from optimizers.experiments.curves import Curve, draw_curves, name_curves, spread
from optimizers.experiments.data import digits
from optimizers.experiments.recipes import default_options, make_optimizer, rules
from optimizers.experiments.training import CURVATURE_EVERY, Run, Together, index_batches, make_model, train

ROWS = 48
BATCH = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads gain nothing on models this small"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch):
    data = digits()
    few = replace(data, train_images=data.train_images[:ROWS], train_labels=data.train_labels[:ROWS])
    monkeypatch.setattr(job, "digits", lambda: few)
    return few


def settled(*arguments: str) -> argparse.Namespace:
    args = job.make_parser().parse_args([*arguments, "--epochs", "2", "--batch-size", str(BATCH)])
    job.settle(args)
    return args


def run_of(name: str, losses: list[list[float]], step: float = 1.0) -> Run:
    """A run that was trained, by what is known of it"""
    optimizer = optimizers.SGD([torch.zeros(1)], lr=0.1)
    seconds = [step] * sum(map(len, losses))
    return Run(name, None, optimizer, list, losses=losses, valid_accuracies=[0.5], step_seconds=seconds)  # type: ignore[arg-type]


# What is trained


def test_all_rules_start_from_the_same_parameters_and_see_the_same_batches(few_digits) -> None:
    runs = job.make_sweep_runs(settled("--sweep"), few_digits)
    starts = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
    orders = [torch.cat([labels for _ in range(2) for _, labels in run.batches()]) for run in runs]
    assert all(start.equal(starts[0]) for start in starts)
    assert all(order.equal(orders[0]) for order in orders)
    assert len({p.data_ptr() for run in runs for p in run.model.parameters()}) == 4 * len(runs)


def test_a_sweep_without_names_takes_every_rule_and_compares_with_adam() -> None:
    names = settled("--sweep").sweep
    assert names[0] == "Adam"
    assert sorted(names) == sorted(rules())


def test_a_sweep_with_names_takes_each_once_in_the_order_given() -> None:
    assert settled("--sweep", "SGD", "Adam", "SGD").sweep == ["SGD", "Adam"]


def test_every_rule_of_a_sweep_lowers_the_loss(few_digits) -> None:
    args = settled("--sweep")
    args.epochs = 12
    runs = job.make_sweep_runs(args, few_digits)
    train(runs, few_digits, args.epochs)
    assert [run.name for run in runs if not run.mean_losses[-1] < 0.99 * run.losses[0][0]] == []


def test_the_learning_rate_of_the_command_line_is_for_all_rules_of_a_sweep(few_digits) -> None:
    runs = job.make_sweep_runs(settled("--sweep", "Adam", "SGD", "--lr", "0.02"), few_digits)
    assert [run.optimizer.param_groups[0]["lr"] for run in runs] == [0.02, 0.02]


@pytest.mark.parametrize("other", [["--optimizer", "SGD"], ["--compare"], ["--preset", "rust-libtorch"]])
def test_a_sweep_refuses_what_chooses_rules_too(other: list[str]) -> None:
    with pytest.raises(ValueError, match="Leave out"):
        job.settle(job.make_parser().parse_args(["--sweep", *other]))


def test_a_sweep_refuses_a_name_that_is_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job.main(["--sweep", "Adamm"])
    assert "Adamm" in capsys.readouterr().err


# What rules start from


@pytest.mark.parametrize("steps", [1, 9, 3600])
def test_a_schedule_fits_into_the_run(steps: int) -> None:
    options = default_options(optimizers.AdamWarmupCosineDecay, steps)
    optimizer = optimizers.AdamWarmupCosineDecay([torch.zeros(1)], **options)
    last = optimizer.get_lr({"step": steps}, optimizer.param_groups[0])
    assert last == pytest.approx(1e-4 if steps > 1 else 1e-3)


def test_what_is_no_matrix_goes_to_adamw_beside_muon(few_digits) -> None:
    model = make_model("mlp", few_digits, seed=0)
    optimizer = make_optimizer(torch.optim.Muon, model, {"lr": 0.02})
    assert isinstance(optimizer, Together)
    muon, beside = optimizer.param_groups
    assert [p.ndim for p in muon["params"]] == [2, 2]
    assert [p.ndim for p in beside["params"]] == [1, 1]
    run = Run("Muon", model, optimizer, index_batches(few_digits.train_images, few_digits.train_labels, BATCH, seed=0))
    before = [p.detach().clone() for p in model.parameters()]
    run.train_epoch()
    assert not any(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_curvature_of_sophia_is_estimated_every_tenth_step_and_the_same_when_repeated(few_digits) -> None:
    def trained() -> tuple[int, torch.Tensor]:
        calls = []
        run = job.make_sweep_runs(settled("--sweep", "Sophia"), few_digits)[0]
        update = run.optimizer.update_hessian
        run.optimizer.update_hessian = lambda n_tokens: (calls.append(n_tokens), update(n_tokens))
        for _ in range(4):
            run.train_epoch()
        assert set(calls) == {BATCH}
        return len(calls), run.optimizer.state[next(run.model.parameters())]["hessian"]

    torch.manual_seed(1)
    calls, curvature = trained()
    torch.manual_seed(2)
    assert calls == -(-4 * ROWS // BATCH // CURVATURE_EVERY)
    assert curvature.max() > 0
    assert trained()[1].equal(curvature)


# The table


def test_the_table_is_ordered_by_final_loss_and_has_steps_as_ratios_to_the_first() -> None:
    runs = [
        run_of("First", [[1.0, 3.0]], step=1e-5),
        run_of("Lost", [[1.0, math.nan]], step=2e-5),
        run_of("Better", [[9.0], [1.0, 0.5]], step=5e-6),
    ]
    lines = sweep.table(runs)
    rows = [re.split(r"  +", line) for line in lines[1:4]]
    assert [row[0] for row in rows] == ["Better", "First", "Lost"]
    assert [row[2] for row in rows] == ["0.75", "2", "nan"]
    assert [row[-1] for row in rows] == ["0.50", "1.00", "2.00"]
    assert "ratio: to First" in lines[-1]


def test_the_command_prints_the_table_and_writes_the_picture(
    few_digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.png"
    assert job.main(["--sweep", "Adam", "SGD", "RMSprop", "--epochs", "2", "--plot", str(path)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"3 rules from one start; 2 epochs in batches of 16, seed 0", output)
    assert re.search(r"^ +2: +lowest\.loss: .*highest\.loss: ", output, re.MULTILINE)
    assert (
        len(re.findall(r"^(?:Adam|SGD|RMSprop) +[\d.]+ +[\d.]+ +[\d.]+ % +[\d.]+ +[\d.]+$", output, re.MULTILINE)) == 3
    )
    assert path.read_bytes().startswith(b"\x89PNG")


# The picture


def test_each_run_has_a_curve_and_a_name_and_both_are_ordered_by_final_loss() -> None:
    ends = {"Adam": 0.3, "SGD": 0.1, "Lion": 0.2}
    figure = sweep.draw([run_of(name, [[2.0, 1.0], [end, end]]) for name, end in ends.items()], "title")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["SGD", "Lion", "Adam"]
    names = sorted(axes.texts, key=lambda text: text.xyann[1])
    assert [text.get_text() for text in names] == ["SGD", "Lion", "Adam"]
    assert [text.xy[1] for text in names] == pytest.approx([0.1, 0.2, 0.3])
    assert axes.get_yscale() == "log"
    assert axes.get_title() == "title"
    assert "step" in axes.get_xlabel()
    assert "nats" in axes.get_ylabel()


@pytest.mark.parametrize(("epochs", "batches"), [(1, 1), (1, 2), (2, 1), (3, 4), (40, 90)])
def test_a_curve_begins_at_the_first_loss_and_ends_at_that_of_the_table(epochs: int, batches: int) -> None:
    losses = [[1.0 / (1 + epoch) + batch / 100 for batch in range(batches)] for epoch in range(epochs)]
    run = run_of("Adam", losses)
    curve = sweep.loss_curve(run)
    assert (curve.x[0], curve.x[-1]) == (1, epochs * batches)
    assert curve.y[0] == pytest.approx(losses[0][0])
    # Within the first two epochs the mean is of fewer mini-batches than an epoch has.
    assert epochs == 1 or curve.y[-1] == pytest.approx(run.mean_losses[-1])
    assert len(curve.x) <= 1 + 2 * 300


def test_smoothing_changes_no_loss_that_is_always_the_same_and_calms_one_that_jumps() -> None:
    assert sweep.loss_curve(run_of("", [[0.5] * 90] * 5)).y == pytest.approx([0.5] * 450)
    jumping = sweep.loss_curve(run_of("", [[0.1, 1.0] * 45] * 5)).y
    assert max(jumping[50:]) < 1.2 * min(jumping[50:])


def test_a_loss_of_zero_and_a_lost_run_are_drawn() -> None:
    zero, lost = run_of("Zero", [[2.0, 0.0], [0.0, 0.0]]), run_of("Lost", [[2.0, math.inf], [math.nan, math.nan]])
    figure = sweep.draw([zero, lost], "")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["Zero", "Lost (diverged)"]
    assert axes.texts[1].xyann[1] > axes.texts[0].xyann[1]
    assert 0 < axes.get_ylim()[0] < axes.get_ylim()[1] < math.inf
    figure.canvas.draw()


def test_twenty_one_curves_all_look_different_and_neighbours_differ_in_colour() -> None:
    axes = Figure().add_subplot()
    draw_curves(axes, [Curve(str(index), [0, 1], [index, index]) for index in range(21)])
    looks = [(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in axes.lines]
    assert len(set(looks)) == 21
    assert all(look[0] != following[0] for look, following in pairwise(looks))


def test_the_line_to_a_name_looks_like_its_curve() -> None:
    axes = Figure().add_subplot()
    curves = [Curve(str(index), [0, 1], [index, index]) for index in range(16)]
    draw_curves(axes, curves)
    name_curves(axes, curves)
    for line, name in zip(axes.lines, axes.texts, strict=True):
        assert name.get_text() == line.get_label()
        assert name.arrowprops["color"] == line.get_color()
        assert (name.arrowprops["linestyle"] == "-") == (line.get_linestyle() == "-")


@pytest.mark.parametrize(
    ("heights", "moved"),
    [
        ([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]),
        ([0.5, 0.5], [0.55, 0.45]),
        ([0.0, 0.02], [0.0, 0.1]),
        ([1.0, 1.0, 0.3], [1.0, 0.9, 0.3]),
        ([0.52, 0.5, 0.45], [0.59, 0.49, 0.39]),
        ([], []),
    ],
)
def test_names_are_moved_apart_as_little_as_can_be(heights: list[float], moved: list[float]) -> None:
    assert spread(heights, 0.1) == pytest.approx(moved)


def test_names_of_twenty_curves_that_end_together_do_not_overlap() -> None:
    moved = sorted(spread([0.01 + index / 1000 for index in range(20)], 0.05))
    assert all(b - a > 0.05 - 1e-9 for a, b in pairwise(moved))
    assert (moved[0], moved[-1]) == pytest.approx((0.0, 0.95))


def test_the_experiments_start_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from optimizers.experiments import mnist, schedules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
