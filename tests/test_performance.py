"""The performance table: it has all its cells, its workloads are what they say, and the yardstick does its work."""

from __future__ import annotations

import math
import re
import shlex
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
import torch

from optimizers.experiments import performance as job
from optimizers.experiments.columns import Contest, make_columns, pairs, renew
from optimizers.experiments.first_step import first_steps, time_steps
from optimizers.experiments.page import page_text
from optimizers.experiments.streaming import Stream
from optimizers.experiments.timing import MIN_ROUNDS, Column, measure
from optimizers.experiments.workloads import Workload, gpt2, resnet50, workloads

SHORT = ["--rows", "1x128", "--seconds", "0.2"]
TORCH = ["torch for-loop", "torch foreach", "torch fused"]
OURS = ["ours single", "ours foreach", "ours fused"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """One thread, as the machine may be busy, and no other library, as its first import may take minutes."""
    loaded = [name for name in sys.modules if name.startswith(("deepspeed", "labml_nn"))]
    for module in ("deepspeed", "labml_nn", *loaded):
        monkeypatch.setitem(sys.modules, module, None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table_of(output):
    """The cells of the table by row and column."""
    lines = [[cell.strip() for cell in x.strip("|").split("|")] for x in output.splitlines() if x.startswith("|")]
    head, _, *rows = lines
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def number(cell):
    return float(cell.rstrip("x").replace(",", ""))


def error_of(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        job.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.rpartition("error: ")[2]


def fake(monkeypatch, path, **members):
    """An installed module."""
    parts = path.split(".")
    for i in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:i]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__dict__.update(members)


# The table


def test_a_run_prints_every_column_and_draws_the_picture(capsys, tmp_path):
    assert job.main([*SHORT, "--threads", "1", "--plot", str(tmp_path / "speed.png")]) == 0
    output = capsys.readouterr().out
    (row,) = table_of(output).items()
    assert row[0] == "1x128"
    assert list(row[1]) == [*TORCH, *OURS, "limit", "vs torch fused", "of limit"]
    assert all(0 < number(cell) < math.inf for cell in row[1].values())
    assert f"torch {torch.__version__}" in output
    assert "1 threads" in output
    assert "AVX-512" in output
    assert "DeepSpeedCPUAdam takes no part: deepspeed is not installed" in output
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_a_rule_without_a_fused_kernel_in_torch_is_compared_with_torchs_best(capsys):
    assert job.main([*SHORT, "--optimizer", "RMSprop", "--kwargs", "momentum=0.9", "centered=True"]) == 0
    cells = table_of(capsys.readouterr().out)["1x128"]
    assert list(cells) == [*TORCH[:2], *OURS, "limit", "vs torch best", "of limit"]
    best = min(number(cells[name]) for name in TORCH[:2])
    assert number(cells["vs torch best"]) == pytest.approx(best / number(cells["ours fused"]), rel=0.05)


def test_the_ratios_are_theirs_over_ours():
    table = job.Table([*TORCH, "DeepSpeedCPUAdam", "ours fused", "limit"])
    times = {**dict.fromkeys(TORCH, 30.0), "DeepSpeedCPUAdam": 15.0, "ours fused": 10.0, "limit": 9.0}
    table.head("Adam")
    assert table.line("a", times).split(" | ")[-3:] == ["         3.00x", "              1.50x", "    0.90 |"]


def test_a_column_that_could_not_take_part_is_a_dash():
    table = job.Table([*TORCH, "ours fused", "limit"])
    cells = table_of("\n".join([*table.head("Adam"), table.line("a", dict.fromkeys(TORCH, 30.0))]))["a"]
    assert [cells[name] for name in ("ours fused", "limit", "vs torch fused", "of limit")] == ["-"] * 4


def test_a_picture_can_be_drawn_of_rows_with_missing_columns(tmp_path):
    rows = {f"row {i}": dict.fromkeys(OURS[: 1 + i % 3], 10.0**i) for i in range(5)}
    rows["row 1"]["limit"] = 3.0
    job.plot(rows, "title", tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


# The page


@pytest.mark.slow
def test_the_page_has_what_was_measured_and_nothing_else(capsys, tmp_path):
    path = tmp_path / "speed.md"
    arguments = ["--rows", "1x128", "--seconds", "0.1", "--page", str(path)]
    assert job.main(arguments) == 0
    text, printed = path.read_text(encoding="utf-8"), capsys.readouterr().out
    assert re.findall("^## (.*)$", text, re.M)[1:4] == ["Adam", "RMSprop", "SGD (momentum=0.9)"]
    tables = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(tables) == 3 * 3
    assert all(line in text for line in tables)
    assert text.count(shlex.join(["python", "-m", "optimizers.experiments.performance", *arguments])) == 2
    assert all(f"- {line}" in text for line in printed.splitlines()[:2])
    assert "first process, cache empty" in text
    prose = re.sub(r"^(```.*?^```|\|.*?)$", "", text, flags=re.M | re.S)
    assert max(map(len, prose.splitlines())) <= 120


@pytest.mark.parametrize(("load", "warns"), [(0.1, False), (3.0, True)])
def test_the_page_says_if_the_machine_was_busy(load, warns):
    assert ("busy" in page_text("command", ["a machine"], load, 1.0, workloads(), [], [])) == warns


def test_the_spread_of_a_ratio_names_its_rows():
    table = job.Table(["torch fused", "ours fused", "limit"])
    assert table.spread() == []
    for row, ours in {"a": 10.0, "b": 20.0, "c": 15.0}.items():
        table.line(row, {"torch fused": 30.0, "ours fused": ours, "limit": 5.0})
    table.line("d", {"torch fused": 30.0})
    assert table.spread() == ["`vs torch fused`: from 1.50x (b) to 3.00x (a)", "`of limit`: from 0.25 (b) to 0.50 (a)"]


# What is refused


def test_a_rule_that_torch_has_not_is_refused_with_those_it_has(capsys):
    message = error_of(["--optimizer", "WeightDecay"], capsys)
    assert "WeightDecay" in message
    assert all(name in message for name in ("Adam", "AdamW", "SGD", "RMSprop"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kwargs", "momentum"], "NAME=VALUE"),
        (["--kwargs", "speed=3"], "unexpected keyword argument 'speed'"),
        (["--kwargs", "lr=-1"], "Invalid learning rate"),
        (["--rows", "nothing"], "no row has nothing in 1x128, MLP"),
        (["--seconds", "0"], "must be positive"),
        (["--threads", "0"], "must be positive"),
        (["--plot", "speed.pdf"], "must end in .png"),
        (["--plot", "no/such/folder/speed.png"], "there is no folder"),
        (["--page", "speed.html"], "must end in .md"),
        (["--page", "no/such/folder/speed.md"], "there is no folder"),
        (["--page", "speed.md", "--optimizer", "SGD"], "takes no --optimizer"),
        (["--device", "cuda", "--page", "speed.md"], "takes no --page"),
        (["--device", "cuda", "--first-step"], "takes no --page, --first-step"),
        pytest.param(
            ["--device", "cuda"],
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_measured(arguments, words, capsys):
    assert words in error_of(arguments, capsys)


# The workloads


def test_the_shapes_are_those_of_the_models():
    sizes = {row.name: (len(row.shapes), row.elements) for row in workloads()}
    assert sizes == {
        "1x128": (1, 128),
        "MLP 784-128-10": (4, 101_770),
        "1000x 64x64": (1000, 4_096_000),
        "465 groups": (465, 4_486_656),
        "ResNet-50": (161, 25_557_032),
        "GPT-2 124M": (148, 124_439_808),
    }
    assert {(64, 3, 7, 7), (512, 512, 3, 3), (2048, 1024, 1, 1), (1000, 2048)} <= set(resnet50())
    assert {(50257, 768), (1024, 768), (768, 2304), (3072, 768)} <= set(gpt2())


def test_every_tensor_of_the_detector_has_a_learning_rate_of_its_own():
    row = next(row for row in workloads() if row.one_group_each)
    groups = row.arrange(row.draw(seed=1, scale=1.0), lr=0.1)
    assert [len(group["params"]) for group in groups] == [1] * 465
    assert len({group["lr"] for group in groups}) == 465
    assert all(0.1 <= group["lr"] <= 0.2 for group in groups)


# The columns


def test_all_columns_step_from_the_same_parameters_with_the_same_gradients(monkeypatch):
    """Every optimizer ends where torch's does, so each has stepped as often and with its own memory."""
    made = {}

    def keep(name, factory):
        def make(params):
            made[name] = factory(params)
            return made[name]

        return make

    contest = Contest(*pairs()["Adam"], {"lr": 0.1})
    row = Workload("three", ((5, 4), (7,), (2,)), one_group_each=True)
    entrants = {name: keep(name, factory) for name, factory in contest.entrants().items()}
    grads = row.draw(seed=2, scale=1.0)
    columns = make_columns(contest, entrants, row, grads)
    assert [column.name for column in columns] == [*TORCH, *OURS, "limit"]
    expected = [p for group in made["torch for-loop"].param_groups for p in group["params"]]
    for optimizer in made.values():
        got = [p for group in optimizer.param_groups for p in group["params"]]
        torch.testing.assert_close(got, expected)
    assert len({group["params"][0].data_ptr() for o in made.values() for group in o.param_groups}) == 3 * 6


def test_a_gradient_is_a_new_tensor_each_time():
    params, grads = [torch.zeros(3, requires_grad=True)], [torch.ones(3)]
    renew(params, grads)
    before = params[0].grad
    renew(params, grads)
    assert params[0].grad is not before
    assert torch.equal(params[0].grad, grads[0])


def test_an_entrant_that_fails_has_no_column_and_is_noted():
    def broken(params):
        raise RuntimeError("no kernel today")

    contest = Contest(*pairs()["SGD"], {})
    row = Workload("one", ((3,),))
    columns = make_columns(contest, {"torch fused": broken}, row, row.draw(seed=2, scale=1.0))
    assert [column.name for column in columns] == ["limit"]
    assert contest.notes == ["torch fused takes no part in one: no kernel today"]


@pytest.mark.parametrize(("rule", "decoupled", "decay"), [("Adam", False, 0), ("AdamW", True, 0.01)])
def test_deepspeed_takes_part_where_it_is_installed(monkeypatch, capsys, rule, decoupled, decay):
    seen = []

    class DeepSpeedCPUAdam(torch.optim.Adam):
        def __init__(self, params, lr, betas, eps, weight_decay, adamw_mode):
            seen.append((lr, betas, eps, weight_decay, adamw_mode))
            super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=adamw_mode)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fake(monkeypatch, "deepspeed.ops.adam", DeepSpeedCPUAdam=DeepSpeedCPUAdam)
    assert job.main([*SHORT, "--optimizer", rule, "--kwargs", "lr=0.5"]) == 0
    cells = table_of(capsys.readouterr().out)["1x128"]
    assert number(cells["DeepSpeedCPUAdam"]) > 0
    assert number(cells["vs DeepSpeedCPUAdam"]) > 0
    assert seen == [(0.5, (0.9, 0.999), 1e-8, decay, decoupled)]


def test_labml_takes_part_where_it_is_installed(monkeypatch):
    fake(monkeypatch, "labml_nn.optimizers.adam", Adam=torch.optim.Adam)
    assert "labml_nn" in Contest(*pairs()["Adam"], {}).entrants()
    assert "labml_nn" not in Contest(*pairs()["Adam"], {"weight_decay": 0.1}).entrants()


def test_a_library_that_fails_to_import_is_noted(monkeypatch):
    fake(monkeypatch, "deepspeed.ops.adam")
    contest = Contest(*pairs()["Adam"], {})
    assert "DeepSpeedCPUAdam" not in contest.entrants()
    assert contest.notes[0].startswith("DeepSpeedCPUAdam takes no part: ImportError: cannot import name")


def test_other_libraries_take_no_part_with_options_or_rules_they_do_not_know(monkeypatch):
    fake(monkeypatch, "deepspeed.ops.adam", DeepSpeedCPUAdam=torch.optim.Adam)
    assert "DeepSpeedCPUAdam" not in Contest(*pairs()["Adam"], {"amsgrad": True}).entrants()
    assert "DeepSpeedCPUAdam" not in Contest(*pairs()["SGD"], {}).entrants()


# The timing


def test_columns_take_turns_and_slow_ones_get_five_rounds():
    calls = []
    columns = [Column(n, lambda n=n: calls.append(n), lambda grads: calls.append(grads)) for n in ("a", "b")]
    measure(columns, ["first", "second"], 1e-9)
    assert calls[0::2][:2] == ["first", "second"], "each step has the next gradients"
    assert all(len(column.seconds) == MIN_ROUNDS for column in columns)
    steps = calls[1::2]
    changes = sum(x != y for x, y in pairwise(steps))
    assert changes == 1 + 1 + MIN_ROUNDS, "warm a and b, then a turn each, forwards and backwards"


# The streaming limit


@pytest.mark.parametrize("arrays", [1, 3, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_streaming_kernel_moves_every_element_halfway_to_the_gradient(arrays, threads):
    torch.set_num_threads(threads)
    shapes = [(1,), (130, 129), (63,), (0,), (2, 8192)]
    written = [[torch.randn(shape) for shape in shapes] for _ in range(arrays)]
    grads = [torch.randn(shape) for shape in shapes]
    kept = [g.clone() for g in grads]
    expected = [[(a + g) * 0.5 for a, g in zip(tensors, grads, strict=True)] for tensors in written]
    stream = Stream(written)
    stream.renew(grads)
    stream.step()
    assert all(torch.equal(a, b) for x, y in zip(written, expected, strict=True) for a, b in zip(x, y, strict=True))
    assert all(map(torch.equal, grads, kept))


def test_the_streaming_kernel_has_as_many_arrays_as_the_rule_writes(monkeypatch):
    from optimizers.experiments import columns as module

    counts = []
    monkeypatch.setattr(
        module, "Stream", lambda written: counts.append(len(written)) or SimpleNamespace(step=int, renew=list)
    )
    row = Workload("one", ((3,),))
    for name, options in (("Adam", {}), ("Adam", {"amsgrad": True}), ("SGD", {}), ("SGD", {"momentum": 0.9})):
        contest = Contest(*pairs()[name], options)
        make_columns(contest, contest.entrants(), row, row.draw(seed=2, scale=1.0))
    assert counts == [3, 4, 1, 2]


def test_the_streaming_kernel_refuses_what_it_would_misread():
    with pytest.raises(ValueError, match="float32 and contiguous"):
        Stream([[torch.zeros(3, dtype=torch.float64)]])
    with pytest.raises(ValueError, match=r"must have 3 elements\. Received: 4"):
        Stream([[torch.zeros(3)]]).renew([torch.zeros(4)])


# The first step


def test_the_second_process_compiles_nothing():
    head, first, second = first_steps("SGD", {"momentum": 0.9})
    assert head.startswith("SGD, the first 3 steps")
    assert first.endswith("libraries compiled: 3")
    assert second.endswith("libraries compiled: 0")


def test_the_first_steps_are_measured():
    assert all(seconds > 0 for seconds in time_steps("Adam", {}))
