"""Steps that Python knows nothing of: under AMP, in CUDA graphs, and nothing waits for the device."""

import contextlib
import gc
import math
import weakref

import pytest
import torch
from torch.optim import lr_scheduler

from optimizers import SGD, Adam
from optimizers.engines import device_launch, stepper
from tests import helpers
from tests.helpers import same, values
from tests.rules import BY_NAME
from tests.triton_cases import (
    SHAPES,
    SINGLE,
    Counting,
    all_classes,
    assert_close,
    assert_fused,
    assert_states_agree,
    here,
    in_mode,
    modes,
    moved,
    pair,
    run,
    same_states,
    states,
    step,
    tell,
    with_gaps,
)

# ## AMP


@pytest.mark.parametrize("scale", [1024.0, 1000.0])
@all_classes
def test_scaled_gradients_give_what_gradients_give(rule, scale, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), with_gaps(helpers.gradients(qs, 4))
    optimizer = rule.build(ps, "fused")
    for row in rows:
        tell(optimizer, gpu, grad_scale=scale)
        step(optimizer, ps, [None if g is None else g * scale for g in row])
    plain = run(rule.build(qs, "single"), qs, rows)
    assert_fused(optimizer, "device")
    # The scaled gradients of 1000 are rounded, and so are those that are divided by it.
    assert_close(ps, qs, start, 4 if scale == 1024 else 8)
    assert_states_agree(optimizer, plain, 4 if scale == 1024 else 8)


@all_classes
def test_step_with_an_infinite_gradient_leaves_every_bit_as_it_was(rule, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, others, rows = moved(qs, gpu), moved(qs, gpu), helpers.gradients(qs, 5)
    optimizer, other = rule.build(ps, "fused"), rule.build(others, "fused")
    for number, row in enumerate(rows):
        skipped = number in (2, 3)
        before, state = here(ps), states(optimizer)
        tell(optimizer, gpu, float(skipped), 16.0)
        step(optimizer, ps, [(g * 16.0).fill_(float("inf")) if skipped else g * 16.0 for g in row])
        if skipped:
            assert same(here(ps), before)
            assert all(same(one[k], two[k]) for one, two in zip(states(optimizer), state, strict=True) for k in one)
        else:
            tell(other, gpu, grad_scale=16.0)
            step(other, others, [g * 16.0 for g in row])
    assert_fused(optimizer, "device")
    assert same(here(ps), here(others))
    assert same_states(optimizer, other)


def test_state_that_a_skipped_step_would_have_added_is_not_there(gpu):
    ps = moved(helpers.params(SHAPES, torch.float32), gpu)
    rows = helpers.gradients(ps, 4)
    rows[0][1] = rows[1][1] = None
    optimizer = SGD(ps, lr=0.1, momentum=0.9, dampening=0.3, fused=True)
    for row, found_inf in zip(rows, (0.0, 0.0, 1.0, 0.0), strict=True):
        tell(optimizer, gpu, found_inf)
        step(optimizer, ps, row)
        assert ("momentum_buffer" in optimizer.state[ps[1]]) == (row is rows[3])
    assert same(optimizer.state[ps[1]]["momentum_buffer"].cpu(), rows[3][1])


def test_first_step_that_is_skipped_makes_no_state(gpu):
    ps = moved(helpers.params(SHAPES, torch.float32), gpu)
    optimizer = Adam(ps, fused=True)
    tell(optimizer, gpu, 1.0, 2.0)
    step(optimizer, ps, helpers.gradients(ps, 1)[0])
    assert optimizer.state_dict()["state"] == {}


@all_classes
def test_grad_scaler_trains_as_without_one_but_for_the_step_that_overflowed(rule, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 4)
    optimizer, plain = rule.build(ps, "fused"), rule.build(qs, "single")
    scaler = torch.amp.GradScaler(gpu.type, init_scale=1024.0, growth_interval=1000)
    scaler.scale(torch.ones((), device=gpu))
    for number, row in enumerate(rows):
        for p, g in zip(ps, row, strict=True):
            p.grad = (g * scaler.get_scale()).to(gpu)
        if number == 2:
            ps[0].grad[0, 0] = float("inf")
        if number == 3:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if number != 2:
            step(plain, qs, row)
    assert_fused(optimizer, "device")
    assert scaler.get_scale() == 512.0
    assert_close(ps, qs, start, 4)
    assert_states_agree(optimizer, plain, 4)


def test_rule_that_only_python_can_read_is_scaled_and_skipped(gpu):
    class Root(Counting):
        def step_param(self, state, group, grad, param):
            param.sub_(grad, alpha=group["lr"] / math.sqrt(state["step"]))

    ps, optimizer, qs, plain = pair(gpu, lambda ps, **options: Root(ps, options, lr=0.1), "host")
    start, rows = values(qs), helpers.gradients(qs, 4)
    for number, row in enumerate(rows):
        tell(optimizer, gpu, float(number == 2), 4.0)
        step(optimizer, ps, [g * 4.0 for g in row])
        if number != 2:
            step(plain, qs, row)
    assert_fused(optimizer, "host")
    assert_close(ps, qs, start, 3)
    assert_states_agree(optimizer, plain, 3)


def test_steps_without_a_scaler_may_come_between_steps_with_one(gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam, "host")
    start, rows = values(qs), helpers.gradients(qs, 5)
    for number, row in enumerate(rows):
        scaled = number in (1, 2, 4)
        if scaled:
            tell(optimizer, gpu, grad_scale=8.0)
        step(optimizer, ps, [g * 8.0 if scaled else g for g in row])
        if scaled:
            del optimizer.found_inf, optimizer.grad_scale
        step(plain, qs, row)
    assert_close(ps, qs, start, 5)
    assert_states_agree(optimizer, plain, 5)


# ## Graphs


def recorded(optimizer, gpu):
    """A step of an optimizer, to be repeated as a graph repeats it, which looks at nothing."""
    if gpu.type == "cpu":
        (launch,) = optimizer._stepper._plan.jobs[0].launches
        found_inf = getattr(optimizer, "found_inf", torch.zeros(()))
        grad_scale = torch.ones(())
        return lambda: launch.launch(found_inf, grad_scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


@contextlib.contextmanager
def aside(gpu):
    """What comes before a capture is done on another stream."""
    if gpu.type == "cpu":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


GRAPHED = ["radam-betas-eps-l2", "sgd-dampening-l2", "nadam", "adam-warmup-cosine"]


@pytest.mark.parametrize("name", GRAPHED)
def test_step_that_a_graph_repeats_is_the_step_that_would_have_been_taken(name, gpu):
    rule, qs = BY_NAME[name], helpers.params([(5,), ()], torch.float32)
    rows = [[g.to(gpu) for g in row] for row in helpers.gradients(qs, 53)]
    results = []
    for in_a_graph in (True, False):
        ps, lr = moved(qs, gpu), torch.tensor(0.05, device=gpu)
        optimizer = in_mode(rule.build(ps, "fused", lr=lr), "device")
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.97)
        for p, g in zip(ps, rows[0], strict=True):
            p.grad = torch.zeros_like(g)
        replay = None
        for number, row in enumerate(rows):
            for p, g in zip(ps, row, strict=True):
                p.grad.copy_(g)
            if in_a_graph and number == 3:
                replay = recorded(optimizer, gpu)
            if replay is not None:
                replay()
            else:
                with aside(gpu):
                    optimizer.step()
            schedule.step()
        results.append((here(ps), states(optimizer)))
    (one, of_one), (two, of_two) = results
    assert all(s.get("step", 53) == 53 for s in of_one)
    assert same(one, two)
    assert all(same(a[k], b[k]) for a, b in zip(of_one, of_two, strict=True) for k in b)


def test_graph_leaves_out_the_steps_that_amp_has_left_out(gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 8)
    optimizer, plain = Adam(ps, lr=0.1, fused=True), Adam(qs, lr=0.1, **SINGLE)
    optimizer.found_inf = torch.zeros((), device=gpu)
    for p in ps:
        p.grad = torch.zeros_like(p)
    replay = None
    for number, row in enumerate(rows):
        optimizer.found_inf.fill_(float(number in (4, 5)))
        for p, g in zip(ps, row, strict=True):
            p.grad.copy_(g)
        if number < 2:
            with aside(gpu):
                optimizer.step()
        else:
            replay = replay or recorded(optimizer, gpu)
            replay()
        if number not in (4, 5):
            step(plain, qs, row)
    assert_close(ps, qs, start, 6)
    assert_states_agree(optimizer, plain, 6)


@contextlib.contextmanager
def capturing(optimizer, gpu):
    """Pretend that all is written down for a graph."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (stepper, device_launch):
            patch.setattr(module, "is_capturing", lambda device: True)
        plan = optimizer._stepper._plan
        if plan is not None and not plan.on_device:
            patch.setattr(plan, "_not_in_graphs_of", gpu)
        yield


def test_graph_of_a_step_with_numbers_of_the_host_is_refused_with_advice(gpu):
    ps, optimizer, *_ = pair(gpu, Adam, "host")
    rows = helpers.gradients(ps, 3)
    run(optimizer, ps, rows[:2])
    before, state = here(ps), states(optimizer)
    advice = r"repeat the numbers of this one step of Adam: set capturable=True"
    with capturing(optimizer, gpu), pytest.raises(RuntimeError, match=advice):
        step(optimizer, ps, rows[2])
    assert same(here(ps), before)
    assert all(same(one[k], two[k]) for one, two in zip(states(optimizer), state, strict=True) for k in one)


def test_graph_of_a_rule_that_only_python_can_read_is_refused_with_the_reason(gpu):
    class Root(Counting):
        def step_param(self, state, group, grad, param):
            param.sub_(grad, alpha=group["lr"] / math.sqrt(state["step"]))

    ps, optimizer, *_ = pair(gpu, lambda ps, **options: Root(ps, options, lr=0.1))
    rows = helpers.gradients(ps, 3)
    run(optimizer, ps, rows[:2])
    reason = r"repeat the numbers .* of Root: .*test_triton_graphs\.py:\d+.*math\.sqrt"
    with capturing(optimizer, gpu), pytest.raises(RuntimeError, match=reason):
        step(optimizer, ps, rows[2])


@modes
def test_first_step_in_a_graph_is_refused_with_advice(mode, gpu):
    ps, optimizer, *_ = pair(gpu, Adam, mode)
    advice = r"Adam is not ready to be captured in a CUDA graph: take a step or two"
    with capturing(optimizer, gpu), pytest.raises(RuntimeError, match=advice):
        step(optimizer, ps, helpers.gradients(ps, 1)[0])
    assert optimizer.state_dict()["state"] == {}


def test_capturable_that_is_set_after_some_steps_lets_a_graph_be_captured(gpu):
    ps, optimizer, *_ = pair(gpu, Adam, "host")
    rows = helpers.gradients(ps, 4)
    run(optimizer, ps, rows[:2])
    run(in_mode(optimizer, "device"), ps, rows[2:3])
    with capturing(optimizer, gpu):
        step(optimizer, ps, rows[3])
    assert [s["step"] for s in states(optimizer)] == [4, 4]


def test_what_a_graph_reads_outlives_the_plan_that_made_it(gpu):
    ps, optimizer, *_ = pair(gpu, Adam)
    rows = helpers.gradients(ps, 4)
    run(optimizer, ps, rows[:2])
    (launch,) = optimizer._stepper._plan.jobs[0].launches
    read = [weakref.ref(t) for t in (launch.fixed, launch._tensors_table, launch.fresh._all, launch._large[-1])]
    del launch
    with capturing(optimizer, gpu):
        step(optimizer, ps, rows[2])
    step(optimizer, ps, [rows[3][0], None])
    gc.collect()
    assert [ref() is not None for ref in read] == [True] * 4


# ## Nothing waits


class Silent:
    """In the place of a kernel: the interpreter itself looks at tensors, as no GPU does."""

    def __init__(self):
        self.asked = 0

    def __getitem__(self, grid):
        self.asked += 1
        return lambda *arguments, **constants: None


def refuse(*_, **__):
    raise AssertionError("a step has waited for the device")


@contextlib.contextmanager
def never_waiting(gpu):
    """Whoever looks at a number of a tensor, or makes the host wait for the GPU, is caught."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
            patch.setattr(torch.Tensor, name, refuse)
        if gpu.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if gpu.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize("asked", ["host", "device", "tensor lr", "amp"])
@all_classes
def test_step_never_waits_for_the_device(rule, asked, gpu, monkeypatch):
    ps = moved(helpers.params([(3,), ()], torch.float32), gpu)
    lr = {"lr": torch.tensor(0.01, device=gpu)} if asked == "tensor lr" else {}
    optimizer = in_mode(rule.build(ps, "fused", **lr), "device" if asked == "device" else "host")
    if asked == "amp":
        tell(optimizer, gpu, grad_scale=2.0)
    rows = [[g.to(gpu) for g in row] for row in helpers.gradients(ps, 5)]
    run(optimizer, ps, rows[:2])
    assert_fused(optimizer, "host" if asked == "host" else "device")
    kernels = {}
    if gpu.type == "cpu":
        for launch in (launch for job in optimizer._stepper._plan.jobs for launch in job.launches):
            for name in {"function", "_calculate"} & vars(launch).keys():
                kernels[launch, name] = Silent()
                monkeypatch.setattr(launch, name, kernels[launch, name])
    with never_waiting(gpu):
        for row in rows[2:]:
            for p, g in zip(ps, row, strict=True):
                p.grad = g
            optimizer.step()
    assert [kernel.asked for kernel in kernels.values()] == [3] * len(kernels)
    assert kernels or gpu.type == "cuda"


# ## What is around a step


@modes
def test_default_device_is_for_the_tensors_of_others(mode, gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam, mode)
    start, rows = values(qs), helpers.gradients(qs, 3)
    with torch.device("meta"):
        for row in rows:
            for p, g in zip(ps, row, strict=True):
                p.grad = g.to(gpu)
            optimizer.step()
    run(plain, qs, rows)
    assert_fused(optimizer, mode)
    assert_close(ps, qs, start, 3)
    assert_states_agree(optimizer, plain, 3)


def test_scaler_that_found_no_gradient_moves_nothing(gpu):
    ps, optimizer, *_ = pair(gpu, Adam, "host")
    before = here(ps)
    optimizer.found_inf = sum([])
    optimizer.step()
    assert same(here(ps), before)


def test_steps_that_a_scaler_is_used_for_later_are_the_devices_from_then_on(gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam, "host")
    start, rows = values(qs), helpers.gradients(qs, 3)
    run(optimizer, ps, rows[:1])
    assert_fused(optimizer, "host")
    optimizer.found_inf = torch.zeros((), device=gpu)
    run(optimizer, ps, rows[1:])
    run(plain, qs, rows)
    assert_fused(optimizer, "device")
    assert_close(ps, qs, start, 3)


def test_states_that_share_a_count_are_counted_here(gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam)
    start, rows = values(qs), helpers.gradients(qs, 3)
    run(optimizer, ps, rows[:1])
    optimizer.state[ps[1]]["step"] = optimizer.state[ps[0]]["step"]
    run(optimizer, ps, rows[1:])
    run(plain, qs, rows)
    assert_fused(optimizer, "host")
    assert_close(ps, qs, start, 3)
    assert_states_agree(optimizer, plain, 3)


def test_only_so_many_steps_are_captured_without_one_outside(gpu):
    if gpu.type == "cuda":
        pytest.skip("what was captured would have to be kept")
    ps, optimizer, *_ = pair(gpu, Adam)
    run(optimizer, ps, helpers.gradients(ps, 2))
    launch = optimizer._stepper._plan.jobs[0].launches[0]
    launch._spares.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_launch, "is_capturing", lambda device: True)
        before = here(ps)
        with pytest.raises(RuntimeError, match="take one outside"):
            optimizer.step()
    assert same(here(ps), before)
    optimizer.step()
    launch = optimizer._stepper._plan.jobs[0].launches[0]
    assert len(launch._spares) == device_launch.SPARES
