"""The pictures of schedules: what is drawn is what a rule says of its learning rate, and the rectification term."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizers import Adam
from optimizers.experiments import schedules
from optimizers.experiments.curves import Curve


class Triangle(Adam):
    """A schedule that this package has not: up to `lr` and down again"""

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        return group["lr"] * (1 - abs(state["step"] - 50) / 50)


def at(curve: Curve, step: int) -> float:
    return curve.y[curve.x.index(step)]


def test_a_curve_is_what_the_rule_says_at_each_step() -> None:
    (curve,) = schedules.schedule_curves({"mine": Triangle([torch.zeros(1)], lr=0.1)}, steps=100)
    assert curve.name == "mine"
    assert list(curve.x) == [*range(1, 101)]
    assert at(curve, 1) == pytest.approx(0.002)
    assert at(curve, 50) == pytest.approx(0.1)
    assert at(curve, 100) == 0


def test_a_long_schedule_is_drawn_by_about_a_thousand_points_with_the_first_and_the_last() -> None:
    (curve,) = schedules.schedule_curves({"Adam": Adam([torch.zeros(1)])}, steps=10**7)
    assert (curve.x[0], curve.x[-1]) == (1, 10**7)
    assert len(curve.x) < 1100


def test_a_learning_rate_that_is_a_tensor_is_drawn_too() -> None:
    (curve,) = schedules.schedule_curves({"Adam": Adam([torch.zeros(1)], lr=torch.tensor(0.5))}, steps=3)
    assert curve.y == [0.5] * 3


def test_the_known_schedules_rise_for_their_warmup_and_then_do_what_their_papers_say() -> None:
    noam, late, wide, warm, cosine = schedules.known_schedules()
    assert at(noam, 4008) == pytest.approx((512 * 4008) ** -0.5)
    assert at(noam, 2400) == pytest.approx(2400 * 512**-0.5 * 4000**-1.5)
    assert at(late, 4008) == pytest.approx(4008 * 512**-0.5 * 8000**-1.5)
    assert at(wide, 4008) == pytest.approx((1024 * 4008) ** -0.5)
    assert at(warm, 2400) == pytest.approx(6e-4 * 0.6)
    assert at(warm, 24_000) == pytest.approx(6e-4)
    assert at(cosine, 12_000) == pytest.approx(3e-4)
    assert at(cosine, 24_000) == pytest.approx(6e-5)


@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_the_rectification_begins_where_it_exists_and_follows_the_paper(beta2: float) -> None:
    (curve,) = schedules.rectification_curves([beta2], steps=1000)
    most = 2 / (1 - beta2) - 1
    for step, term in zip(curve.x, curve.y, strict=True):
        length = most - 2 * step * beta2**step / (1 - beta2**step)
        if length <= 5:
            assert math.isnan(term)
        else:
            assert term**2 == pytest.approx((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))


def test_a_beta2_without_rectification_is_a_gap() -> None:
    (curve,) = schedules.rectification_curves([0.5], steps=100)
    assert all(map(math.isnan, curve.y))
    schedules.draw_rectification([curve]).canvas.draw()


def test_the_picture_of_schedules_has_a_named_curve_for_each() -> None:
    (axes,) = schedules.draw_schedules().axes
    names = [curve.name for curve in schedules.known_schedules()]
    assert [line.get_label() for line in axes.lines] == names
    assert [text.get_text() for text in axes.texts] == names
    assert axes.get_xlim() == (0, 24_000)
    assert axes.get_xlabel() == "step $t$"
    assert "learning rate" in axes.get_ylabel()


def test_own_schedules_are_drawn_without_a_word_about_the_known_ones() -> None:
    curves = schedules.schedule_curves({"mine": Triangle([torch.zeros(1)], lr=0.1)}, steps=100)
    (axes,) = schedules.draw_schedules(curves).axes
    assert axes.lines[0].get_ydata().tolist() == curves[0].y
    assert axes.get_title(loc="left") == "Learning rates"


def test_the_picture_of_the_rectification_has_a_named_curve_for_each_beta2() -> None:
    (axes,) = schedules.draw_rectification().axes
    assert [line.get_label() for line in axes.lines] == [rf"$\beta_2$ = {b}" for b in (0.9, 0.99, 0.999, 0.9999)]
    assert axes.get_xscale() == "log"
    assert len(axes.texts) == 4


def test_the_command_writes_both_pictures_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schedules.png"
    assert schedules.main(["--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"schedules: {path}\n"
    assert [len(axes.lines) for axes in schedules.draw_both().axes] == [5, 4]


def test_the_command_refuses_what_is_no_png(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        schedules.main(["--plot", "schedules.jpg"])
    assert stopped.value.code == 2
    assert ".png" in capsys.readouterr().err
