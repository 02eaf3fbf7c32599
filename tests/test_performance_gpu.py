"""The tables of a GPU, where one is pretended: what is timed, by which clock, and who takes part."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch

from optimizers.experiments import gpu
from optimizers.experiments import performance as job
from optimizers.experiments.workloads import Workload, workloads


class Event:
    """A CUDA event on a machine without a GPU, where everything is done as soon as it is asked for."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """The parts of torch.cuda that the timing takes, and tensors that lie on the CPU after all."""
    waits = []
    for name, stand_in in {
        "is_available": lambda: True,
        "get_device_name": lambda: "a GPU",
        "synchronize": lambda: waits.append(1),
        "empty_cache": lambda: None,
        "_sleep": lambda cycles: waits.append(cycles),
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    draw, make = Workload.draw, gpu.make_columns
    monkeypatch.setattr(Workload, "draw", lambda self, seed, scale, device: draw(self, seed, scale))
    monkeypatch.setattr(gpu, "make_columns", lambda *args: make(*args[:-1], "a GPU"))
    monkeypatch.setattr(gpu, "copy_speed", lambda: 1e9)
    return waits


def test_a_gpu_has_a_table_for_each_clock(pretended_gpu, capsys, tmp_path):
    picture = tmp_path / "gpu.png"
    assert job.main(["--device", "cuda", "--rows", "1x128", "--seconds", "0.2", "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "a GPU: a copy moves 1 GB/s" in printed
    tables = [line for line in printed.splitlines() if line.startswith("| 1x128")]
    cells = [line.count("|") for line in tables]
    assert cells == [cells[0], cells[0] - 1, cells[0] - 1]
    # A parameter, a gradient and two states of 512 bytes: four are read and three are written.
    assert " 3.6 |" in tables[0]
    assert "DeepSpeed" not in printed
    assert picture.exists()


def test_the_device_is_kept_busy_while_it_is_asked(pretended_gpu):
    def ask():
        assert pretended_gpu[-1] > 1e8
        return len(pretended_gpu)

    assert gpu._on_device(ask, host=0.05) >= 0


def test_models_that_are_huge_are_for_fused_kernels(pretended_gpu, monkeypatch):
    monkeypatch.setattr(gpu, "HUGE_ELEMENTS", 100)
    contest = job.make_contest("Adam", [])
    row = job.choose_rows(["1x128"], "cuda")[0]
    times = gpu.time_row(contest, contest.entrants(), row, 0.1, 1e9)
    assert list(times["wall"]) == ["torch fused", "ours fused"]
    assert list(times["device"]) == ["torch fused", "ours fused", "limit"]
    assert times["wall"]["ours fused"] >= times["host"]["ours fused"]


def test_the_shapes_for_a_gpu_are_those_of_the_cpu_and_a_model_of_one_and_a_half_billion():
    rows = workloads("cuda")
    assert [row.name for row in rows[:-1]] == [row.name for row in workloads()]
    # Table 2 of the paper has 1542M, for an embedding of 50257 tokens and 1024 places.
    assert rows[-1].elements == 1_557_611_200
