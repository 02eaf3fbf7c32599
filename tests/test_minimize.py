"""`minimize`: every rule as one kernel goes where it goes step by step, and nothing that was kept is ever stale."""

import ctypes
import gc
import math
import re
import subprocess
import sys
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import LowLevelCallable
from scipy.optimize import OptimizeResult, rosen, rosen_der

from optimizers import SGD, Adam, AdamW, Muon, RAdam, minimize
from optimizers.engines import descent
from optimizers.engines.compiler import NoCompiler
from optimizers.engines.gradient import Point, record
from optimizers.engines.program import Unrecordable
from optimizers.experiments import minimize as job
from optimizers.experiments.rust import Rust
from tests.rules import BY_NAME, CLASSES, RULES

READABLE = [rule for rule in RULES if not rule.matrices]
ONE_KERNEL, STEPS = "one kernel", "step by step"
SINGLE = {"foreach": False, "fused": False}
WARMUP = 10


def start(size=37, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def bounded(target):
    """A gradient that stays small where a rule maximises."""
    return lambda x: 2 * (x - target) / (1 + (x - target) ** 2)


def twice(x):
    return 2 * x


def close(got, wanted, rtol=1e-12):
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=1e-14)


def adam(x, gradient, steps, lr=0.001, tol=1e-6, beta1=0.9, beta2=0.999, eps=1e-8, reordered=False):
    """The paper's algorithm; gives the point and the number of steps."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        if reordered:
            delta = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + eps)
        else:
            delta = lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        x = x - delta
        if delta @ delta < tol**2:
            break
    return x, t


# What is calculated


@pytest.mark.parametrize("rule", READABLE, ids=str)
def test_kernel_goes_where_steps_go(rule):
    x0, jac = start(), bounded(start(seed=1))
    options = {"jac": jac, "optimizer": rule.cls, "max_steps": 50, "tol": 0, **rule.kwargs}
    loop, steps = minimize(None, x0, **options), minimize(None, x0, **options, **SINGLE)
    assert (loop.way, loop.reason) == (ONE_KERNEL, "")
    assert (steps.way, steps.reason) == (STEPS, "fused=False asks for another reader")
    assert loop.nit == steps.nit == 50
    # All that a rule of ours refers to is fixed, so that it need not be read at each call.
    assert vars(rule.cls)["_loops"].watch.is_settled
    moved = np.abs(steps.x - x0).max()
    assert moved > 0
    assert np.abs(loop.x - steps.x).max() <= max(1e-12, rule.precision) * moved


@pytest.mark.parametrize("rule", [rule for rule in CLASSES if not rule.matrices], ids=str)
def test_kernel_in_float32_goes_where_steps_go(rule):
    x0, target = start().astype(np.float32), start(seed=1).astype(np.float32)
    options = {"jac": lambda x: (x - target) * 0.5, "optimizer": rule.cls, "max_steps": 20, "tol": 0, **rule.kwargs}
    loop, steps = minimize(None, x0, **options), minimize(None, x0, **options, **SINGLE)
    assert loop.way == ONE_KERNEL
    assert loop.x.dtype == steps.x.dtype == np.float32
    assert np.abs(loop.x - steps.x).max() <= 2e-5 * np.abs(steps.x - x0).max() + 1e-6


@pytest.mark.parametrize("reordered", [False, True])
def test_adam_converges_after_as_many_steps_as_the_paper_says(reordered):
    x0 = np.full(128, 10.0)
    x, steps = adam(x0, twice, 10_000, lr=0.01, reordered=reordered)
    result = minimize(None, x0, jac=twice, lr=0.01, max_steps=10_000, optimized_update=reordered)
    assert 3_600 < steps < 3_800
    assert result.nit == steps
    assert result.success
    assert np.abs(result.x - x).max() <= 1e-12 * 10


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99999), (0.99, 0.5), (0.0, 0.9)])
def test_powers_stay_exact_over_thousands_of_steps(betas):
    x0, target = np.linspace(1, 2, 9), 1e3
    options = dict(zip(("beta1", "beta2"), betas, strict=True))
    x, _ = adam(x0, lambda x: x - target, 5_000, lr=0.01, tol=0, **options)
    result = minimize(None, x0, jac=lambda x: x - target, lr=0.01, betas=betas, max_steps=5_000, tol=0)
    assert np.abs(result.x - x).max() <= 1e-12 * np.abs(x - x0).max()


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 5000, 20_000])
def test_any_number_of_elements(size):
    x0, target = start(size), start(size, seed=1)
    options = {"jac": lambda x: x - target, "max_steps": 5, "lr": 0.1, "tol": 0}
    loop, steps = minimize(None, x0, **options), minimize(None, x0, **options, **SINGLE)
    assert loop.way == ONE_KERNEL
    assert loop.nit == steps.nit == 5
    close(loop.x, steps.x)
    close(loop.jac, loop.x - target)


def test_threads_change_no_bit():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(minimize(None, start(50_001), jac=lambda x: x**3 - 1, max_steps=20, tol=0))
    finally:
        torch.set_num_threads(before)
    one, *others = results
    for other in others:
        assert np.array_equal(one.x, other.x)
        assert one.message == other.message


def test_walks_in_several_threads_do_not_meet():
    wanted = [adam(np.full(20, float(k)), twice, 200)[0] for k in range(8)]
    found = [None] * 8

    def walk(k):
        for _ in range(20):
            found[k] = minimize(None, np.full(20, float(k)), jac=lambda x: 2 * x, max_steps=200).x

    threads = [threading.Thread(target=walk, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(found, wanted)


@pytest.mark.parametrize("rule", ["adam", "nadam", "radam", "sgd-nesterov", "asgd-averaging-l2", "ademamix"])
def test_a_walk_in_parts_is_the_walk_to_the_bit(rule, monkeypatch):
    """A long one is made in parts, as long as the time has it, so that it can be interrupted."""
    rule = BY_NAME[rule]
    options = {"jac": in_c, "optimizer": rule.cls, "max_steps": 99, "tol": 0, **rule.kwargs}
    parts = minimize(None, start(), **options)
    each = minimize(None, start(), **options, callback=lambda x: None)
    monkeypatch.setattr(descent, "SECONDS", 1e-9)
    slow = minimize(None, start(), **options)
    assert np.array_equal(parts.x, each.x)
    assert np.array_equal(parts.x, slow.x)
    x0 = np.full(300_000, 3.0)
    result = minimize(None, x0, jac=lambda x: x - 1, lr=0.1, max_steps=40, tol=0)
    close(result.x[0], adam(x0[:1], lambda x: x - 1, 40, lr=0.1, tol=0)[0][0])


# Which way


class Halved(Adam):
    """A rule of a user's own: half of the learning rate from step 10 on."""

    def get_lr(self, state, group):
        return group["lr"] * (0.5 if state["step"] >= WARMUP else 1.0)


def test_a_rule_of_ones_own_is_one_kernel():
    x0 = start()
    options = {"jac": twice, "optimizer": Halved, "max_steps": 30, "tol": 0}
    loop, steps = minimize(None, x0, **options), minimize(None, x0, **options, **SINGLE)
    assert loop.way == ONE_KERNEL
    close(loop.x, steps.x)
    assert not np.allclose(loop.x, minimize(None, x0, jac=twice, max_steps=30, tol=0).x, rtol=1e-13)


def test_a_schedule_turns_where_python_says():
    """At t/n >= 0.3 with n = 10 the quotient is just that of Python; 3 * (1/10) is more than 0.3."""

    class Stairs(SGD):
        def step_param(self, state, group, grad, param):
            t, n = state["step"], group["weight"]
            param.add_(grad, alpha=-group["lr"] * (0.1 if t / n > 0.3 else 1.0))

        def init_state(self, state, group, param):
            state["step"] = 0

        def __init__(self, params, lr=0.1, weight=10.0, **options):
            super().__init__(params, lr, **options)
            for group in self.param_groups:
                group["weight"] = weight

    x0 = np.full(3, 8.0)
    options = {"jac": lambda x: 0 * x + 1, "optimizer": Stairs, "tol": 0, "max_steps": 6}
    loop, steps = minimize(None, x0, **options), minimize(None, x0, **options, **SINGLE)
    assert loop.way == ONE_KERNEL
    close(loop.x, steps.x)


def test_steps_cost_no_python_calls():
    calls = []

    class Counted(Adam):
        def step_param(self, state, group, grad, param):
            calls.append("rule")
            super().step_param(state, group, grad, param)

    asked = []

    def jac(x):
        asked.append(type(x))
        return 2 * x

    first = minimize(None, start(), jac=jac, optimizer=Counted, max_steps=10, tol=0)
    assert first.way == ONE_KERNEL
    assert asked == [Point, np.ndarray]
    # `calls` may change without anybody seeing it, so the rule is read at each call; but not at each step.
    before = len(calls)
    minimize(None, start(), jac=jac, optimizer=Counted, max_steps=10_000, tol=0)
    assert len(calls) - before == before
    assert asked == [Point, np.ndarray, Point]


def test_another_learning_rate_is_no_other_kernel(monkeypatch):
    minimize(None, start(), jac=twice, lr=0.1)
    made = []
    monkeypatch.setattr(descent, "LoopKernel", lambda *args: made.append(args))
    monkeypatch.setattr(descent.LoopRule, "read", lambda *args: made.append(args))
    for lr in (0.2, 0.3, 1e-9):
        assert minimize(None, start(), jac=twice, lr=lr).way == ONE_KERNEL
    assert minimize(None, start(5), jac=twice, betas=(0.3, 0.4), eps=1.0).way == ONE_KERNEL
    assert minimize(None, start(), jac=lambda x: 3 * x).way == ONE_KERNEL
    assert made == []


def test_what_mixes_elements_goes_step_by_step_and_says_why():
    result = minimize(None, start(), jac=lambda x: 2 * x - x.sum() * 0, max_steps=9, tol=0)
    assert result.way == STEPS
    assert "`sum` is not done element by element (test_minimize.py:" in result.reason
    close(result.x, minimize(None, start(), jac=twice, max_steps=9, tol=0).x)


@pytest.mark.parametrize(
    ("jac", "why"),
    [
        (lambda x: np.cumsum(x), "cumsum"),
        (lambda x: np.add.reduce(x) * np.ones(37), "add.reduce"),
        (lambda x: x[::-1].copy(), "looked at"),
        (lambda x: np.array([2 * float(v) for v in x]), "looked at"),
        (lambda x: x @ np.eye(37), "looked at"),
        (lambda x: 2 * x if (x > 0).all() else x * 2, "`all`"),
        (lambda x: np.multiply(x, 2, out=np.empty(37)), "options"),
        (lambda x: np.zeros(37) if math.cos(3) > 0 else list(2 * x), "can't be followed|looked at"),
    ],
)
def test_what_can_not_be_followed_goes_step_by_step(jac, why):
    result = minimize(None, start(), jac=jac, max_steps=3)
    assert result.way == STEPS
    assert re.search(why, result.reason), result.reason


def test_a_rule_that_needs_floats_goes_step_by_step():
    class Rooted(Adam):
        def get_lr(self, state, group):
            return group["lr"] / math.sqrt(state["step"])

    x0 = start()
    result = minimize(None, x0, jac=twice, optimizer=Rooted, max_steps=20, tol=0)
    assert result.way == STEPS
    assert "a symbol is given where only a float can be" in result.reason
    assert not np.array_equal(result.x, x0)


def test_a_rule_that_keeps_count_by_itself_goes_step_by_step():
    class Counting(SGD):
        def step_param(self, state, group, grad, param):
            self.count = getattr(self, "count", 0) + 1
            param.add_(grad, alpha=-group["lr"] / self.count)

    class Noting(SGD):
        def step_param(self, state, group, grad, param):
            self.last = group["lr"]
            param.add_(grad, alpha=-group["lr"])

    for rule, why in ((Counting, "does something else each time it is asked"), (Noting, "changes an attribute")):
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=rule, max_steps=3)
        assert result.way == STEPS
        assert why in result.reason


def test_a_rule_whose_state_depends_on_the_parameter_goes_step_by_step():
    class Sized(SGD):
        scalar_state = ("step", "size")

        def init_state(self, state, group, param):
            state["step"], state["size"] = 0, float(param.numel())

        def step_param(self, state, group, grad, param):
            param.add_(grad, alpha=-group["lr"] / state["size"])

    result = minimize(None, np.ones(8), jac=lambda x: 0 * x + 1, optimizer=Sized, max_steps=1, lr=8.0)
    assert result.way == STEPS
    assert "depends on the parameter" in result.reason
    np.testing.assert_allclose(result.x, 0.0)


def test_matrices_and_foreign_rules_go_step_by_step():
    x0 = start(12).reshape(3, 4)
    result = minimize(None, x0, jac=twice, optimizer=Muon, max_steps=3)
    assert result.way == STEPS
    result = minimize(None, x0, jac=twice, optimizer=torch.optim.Adam, max_steps=30, tol=0)
    assert (result.way, result.reason) == (STEPS, "Adam is no rule of this package")
    close(result.x, minimize(None, x0, jac=twice, max_steps=30, tol=0).x)


def test_no_compiler_goes_step_by_step(monkeypatch):
    def fail(*_):
        raise NoCompiler("no C compiler was found")

    monkeypatch.setattr(descent, "LoopKernel", fail)
    result = minimize(None, start(), jac=lambda x: 7 * x - 3 / (x * x + 1), max_steps=3)
    assert (result.way, result.reason) == (STEPS, "no C compiler was found")


def test_noise_goes_step_by_step():
    """A gradient that is another one each time must not be frozen into a kernel."""
    random = np.random.default_rng(0)
    for jac in (
        lambda x: 2 * x + random.normal(),
        lambda x: 2 * x + random.normal(size=x.shape),
        lambda x: 2 * x + 0 * np.sign(x) + random.normal(size=x.size),
    ):
        for _ in range(3):
            result = minimize(None, start(), jac=jac, max_steps=5)
            assert result.way == STEPS
            assert "function of its argument alone" in result.reason


# The gradient


@pytest.mark.parametrize(
    "jac",
    [
        lambda x: x**3 - 2 * x**2 + x**4 - x**1.5 * 0,
        lambda x: np.exp(-x) * (1 - x) + np.sin(3 * x) - np.cos(x) / 2,
        lambda x: np.where(x > 0, x, -2 * x) + np.maximum(x, 0.5) + np.minimum(1, x),
        lambda x: np.clip(x, -0.5, 0.5) + np.sign(x) * np.abs(x) ** 0.5 + np.sqrt(x * x + 1),
        lambda x: 1 / (1 + x * x) - (3 - x) / 2 + 2**x + +x - (-x),
        lambda x: np.tanh(x) + np.log1p(x * x) + np.arctan(x) + np.square(x) + np.reciprocal(x * x + 1),
        lambda x: ((x > 0) & ~(x > 1)) * x + np.logical_or(x < -1, x >= 0.3) * x,
        lambda x: np.ones_like(x) * 0.3 + np.zeros_like(x) + x.copy(),
        lambda x: np.float64(0.25) * x + np.array(2.0) - x / x.size + len(x) * 0.001,
        lambda x: x,
        partial(np.multiply, 0.5),
    ],
)
def test_functions_of_numpy_are_followed(jac):
    x0 = np.abs(start(50)) + 0.01
    loop = minimize(None, x0, jac=jac, max_steps=30, tol=0)
    steps = minimize(None, x0, jac=jac, max_steps=30, tol=0, **SINGLE)
    assert (loop.way, loop.reason) == (ONE_KERNEL, "")
    close(loop.x, steps.x)
    close(loop.jac, jac(loop.x))


def test_functions_of_torch_are_followed():
    target = torch.linspace(0, 1, 20, dtype=torch.float64)

    def jac(x):
        return torch.sin(x) + torch.where(x > 0, x, 0 * x) + (target - x).exp() + torch.clamp(x, -1, 1) + target * x

    x0 = torch.linspace(-1, 1, 20, dtype=torch.float64, requires_grad=True)
    loop, steps = minimize(None, x0, jac=jac, max_steps=30), minimize(None, x0, jac=jac, max_steps=30, **SINGLE)
    assert (loop.way, loop.reason) == (ONE_KERNEL, "")
    for result in (loop, steps):
        assert type(result.x) is type(result.jac) is torch.Tensor
        assert not result.x.requires_grad
    torch.testing.assert_close(loop.x, steps.x, rtol=1e-12, atol=1e-13)


def test_a_function_that_changes_what_it_refers_to_is_followed_anew():
    factor, target = 2.0, np.zeros(10)

    def jac(x):
        return factor * (x - target)

    def walk():
        result = minimize(None, start(10), jac=jac, max_steps=50, tol=0)
        assert result.way == ONE_KERNEL
        wanted, _ = adam(start(10), jac, 50, tol=0)
        close(result.x, wanted)

    for _ in range(3):
        walk()
    factor = 3.0
    walk()
    target[:] = 1.0
    walk()
    target = np.full(10, 2.0)
    walk()


SLOPE = 2.0


def sloped(x):
    return SLOPE * x


def test_a_global_number_may_change(monkeypatch):
    for slope in (2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 2.0):
        monkeypatch.setitem(globals(), "SLOPE", slope)
        result = minimize(None, start(), jac=sloped, optimizer=SGD, lr=0.1, max_steps=1)
        assert result.way == ONE_KERNEL
        close(result.x, start() * (1 - 0.1 * slope))


def test_a_number_within_an_object_may_change():
    config = SimpleNamespace(slope=2.0)

    def jac(x):
        return config.slope * x

    for slope in (2.0, 2.0, 2.0, 5.0, 5.0):
        config.slope = slope
        result = minimize(None, start(), jac=jac, optimizer=SGD, lr=0.1, max_steps=1)
        assert result.way == ONE_KERNEL
        close(result.x, start() * (1 - 0.1 * slope))


def test_a_function_that_knows_the_size_is_followed_for_each():
    def jac(x):
        return x / len(x)

    for size in (2, 2, 2, 4, 4, 2):
        result = minimize(None, np.ones(size), jac=jac, optimizer=SGD, lr=1.0, max_steps=1)
        np.testing.assert_allclose(result.x, 1 - 1 / size)


def test_functions_are_not_kept_alive():
    def walk():
        def jac(x):
            return 2 * x + 1

        class Mine(Adam):
            def get_lr(self, state, group):
                return super().get_lr(state, group) * 2

        for _ in range(3):
            assert minimize(None, start(), jac=jac, optimizer=Mine).way == ONE_KERNEL
        return weakref.ref(Mine), weakref.ref(jac)

    kind, function = walk()
    gc.collect()
    assert function() is None
    assert kind() is None


def test_a_rule_that_changes_is_read_anew(monkeypatch):
    def walk(rule=Halved):
        loop = minimize(None, start(), jac=twice, optimizer=rule, max_steps=30, tol=0)
        assert loop.way == ONE_KERNEL
        steps = minimize(None, start(), jac=twice, optimizer=rule, max_steps=30, tol=0, **SINGLE)
        close(loop.x, steps.x)
        return loop.x

    first = walk()
    assert np.array_equal(walk(), first)
    # A number of the module.
    monkeypatch.setitem(globals(), "WARMUP", 20)
    assert not np.array_equal(walk(), first)
    monkeypatch.setitem(globals(), "WARMUP", 10)
    assert np.array_equal(walk(), first)
    # A method; and one that was inherited so far.
    monkeypatch.setattr(Halved, "get_lr", lambda self, state, group: group["lr"] * 3)
    third = walk()
    assert not np.array_equal(third, first)
    monkeypatch.setattr(Halved, "get_mv", lambda self, state, group, grad: (grad, state["exp_avg_sq"].add_(1.0)))
    assert not np.array_equal(walk(), third)


def test_a_rule_with_a_list_is_read_anew():
    rates = [1.0]

    class Listed(SGD):
        def get_lr(self, state, group):
            return group["lr"] * rates[0]

        def step_param(self, state, group, grad, param):
            param.add_(grad, alpha=-self.get_lr(state, group))

    for rate in (1.0, 1.0, 2.0, 3.0):
        rates[0] = rate
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=Listed, lr=0.1, max_steps=1)
        np.testing.assert_allclose(result.x, 1 - 0.1 * rate)


def test_classes_of_one_name_are_not_confused():
    def make(factor):
        class Mine(SGD):
            def step_param(self, state, group, grad, param):
                param.add_(grad, alpha=-group["lr"] * factor)

        return Mine

    rules = {factor: make(factor) for factor in (1.0, 2.0)}
    for factor, rule in [*rules.items(), *rules.items()]:
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=rule, lr=0.1, max_steps=1)
        assert result.way == ONE_KERNEL
        np.testing.assert_allclose(result.x, 1 - 0.1 * factor)


def test_a_rule_with_numbers_of_its_own_is_read_for_each():
    class Own(SGD):
        def __init__(self, params, lr=0.1, factor=1.0, **options):
            super().__init__(params, lr, **options)
            self.factor = factor

        def step_param(self, state, group, grad, param):
            param.add_(grad, alpha=-group["lr"] * self.factor)

    for factor in (1.0, 2.0, 1.0):
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=Own, factor=factor, max_steps=1)
        np.testing.assert_allclose(result.x, 1 - 0.1 * factor)


def test_a_rule_whose_state_begins_with_a_number_of_the_options():
    class Beginning(SGD):
        def init_state(self, state, group, param):
            state["step"] = 0
            state["pace"] = torch.full_like(param, 2 * group["lr"])

        def step_param(self, state, group, grad, param):
            param.sub_(state["pace"].mul(grad))

    for lr in (0.1, 0.2, 0.1):
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=Beginning, lr=lr, max_steps=1)
        assert result.way == ONE_KERNEL
        np.testing.assert_allclose(result.x, 1 - 2 * lr)


def test_a_tensor_as_learning_rate_may_change():
    lr = torch.tensor(0.1, dtype=torch.float64)
    for value in (0.1, 0.2):
        lr.fill_(value)
        result = minimize(None, np.ones(3), jac=lambda x: 0 * x + 1, optimizer=SGD, lr=lr, max_steps=1)
        np.testing.assert_allclose(result.x, 1 - value)


def test_a_factory_makes_a_rule_too():
    result = minimize(None, start(), jac=twice, optimizer=partial(AdamW, weight_decay=0.0), max_steps=20, tol=0)
    assert result.way == ONE_KERNEL
    close(result.x, adam(start(), twice, 20, tol=0)[0])


# Compiled gradients

PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double), ctypes.c_int64)


@PROTOTYPE
def in_c(theta, grad, n):
    for i in range(n):
        grad[i] = 2 * theta[i] + (theta[i - 1] if i else 0)


def mixed(x):
    return 2 * x + np.concatenate([[0], x[:-1]])


@pytest.mark.parametrize(
    "native",
    [
        in_c,
        LowLevelCallable(in_c),
        LowLevelCallable(in_c, signature="void (const double *theta, double *grad, int64_t n)"),
        ctypes.cast(in_c, ctypes.c_void_p),
        SimpleNamespace(address=ctypes.cast(in_c, ctypes.c_void_p).value, ctypes=in_c),
    ],
    ids=["ctypes", "scipy", "scipy, signed", "address", "numba"],
)
@pytest.mark.parametrize("rule", [Adam, RAdam, BY_NAME["sgd-nesterov"].cls])
def test_compiled_gradients_are_called_from_the_kernel(native, rule):
    loop = minimize(None, start(), jac=native, optimizer=rule, max_steps=20, tol=0, lr=0.01)
    assert (loop.way, loop.reason, loop.njev) == (ONE_KERNEL, "", 21)
    steps = minimize(None, start(), jac=mixed, optimizer=rule, max_steps=20, tol=0, lr=0.01)
    assert steps.way == STEPS
    close(loop.x, steps.x)
    close(loop.jac, mixed(loop.x))
    alone = minimize(None, start(), jac=native, optimizer=rule, max_steps=20, tol=0, lr=0.01, **SINGLE)
    assert (alone.way, alone.njev) == (STEPS, 21)
    close(alone.x, steps.x)


def test_what_numba_makes_is_taken():
    numba = pytest.importorskip("numba")
    pointer = numba.types.CPointer(numba.types.double)

    @numba.cfunc(numba.types.void(pointer, pointer, numba.types.int64))
    def jac(theta, grad, n):
        for i in range(n):
            grad[i] = 2 * theta[i]

    result = minimize(None, start(), jac=jac, max_steps=20, tol=0)
    assert result.way == ONE_KERNEL
    close(result.x, adam(start(), twice, 20, tol=0)[0])


@pytest.mark.parametrize(
    ("native", "match"),
    [
        (ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None), "must be void"),
        (ctypes.CFUNCTYPE(ctypes.c_double, *PROTOTYPE._argtypes_)(lambda *_: 0.0), "must be void"),
        (
            ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_float), *PROTOTYPE._argtypes_[1:])(lambda *_: None),
            "must be void",
        ),
        (LowLevelCallable(in_c, ctypes.c_void_p(1)), "user_data"),
        (LowLevelCallable(in_c, signature="double (double *, double *, int64_t)"), "must be void"),
        (LowLevelCallable(in_c, signature="void (double *, double *, double)"), "must be void"),
        (LowLevelCallable(in_c, signature="void (double, double *, int64_t)"), "must be void"),
        (ctypes.c_void_p(0), "null pointer"),
    ],
)
def test_another_signature_is_refused(native, match):
    with pytest.raises(ValueError, match=match):
        minimize(None, start(), jac=native)


def test_compiled_gradients_take_float64_only():
    with pytest.raises(TypeError, match="a compiled gradient takes float64"):
        minimize(None, start().astype(np.float32), jac=in_c)


# What is given back


def test_the_answer_is_scipys():
    x0 = start(6)
    result = minimize(lambda x: float(x @ x), x0, jac=twice, max_steps=7, tol=0)
    assert type(result) is OptimizeResult
    assert (result.nit, result.nfev, result.njev, result.status, result.success) == (7, 1, 8, 1, False)
    assert result.fun == pytest.approx(float(result.x @ result.x), rel=1e-14)
    np.testing.assert_allclose(result.jac, 2 * result.x)
    assert result.message.startswith("All max_steps=7 steps were taken, and the last moved x by 0.00")
    assert np.array_equal(x0, start(6))
    assert math.isnan(minimize(None, x0, jac=twice).fun)


def test_without_a_gradient_torch_finds_it():
    result = minimize(lambda x: ((x - 3) ** 2).sum(), [0.0, 10.0], lr=0.1, max_steps=5_000)
    assert result.success
    assert type(result.x) is np.ndarray
    assert (result.way, result.reason) == (STEPS, "without jac it is torch that differentiates fun")
    assert result.nfev == result.njev == result.nit + 1
    np.testing.assert_allclose(result.x, 3, atol=1e-4)
    np.testing.assert_allclose(result.jac, 2 * (result.x - 3))
    assert result.fun == pytest.approx(float(((result.x - 3) ** 2).sum()))


def test_a_function_that_does_not_depend_on_all():
    result = minimize(lambda x: x[0] ** 2, [1.0, 2.0], lr=0.1, max_steps=300)
    assert result.x[1] == 2.0
    assert abs(result.x[0]) < 0.1


def test_rosenbrock_is_minimised():
    result = minimize(rosen, [-1.2, 1.0], jac=rosen_der, lr=0.05, max_steps=20_000, tol=1e-8)
    assert result.success
    assert result.fun < 1e-10
    np.testing.assert_allclose(result.x, 1.0, atol=1e-4)


@pytest.mark.parametrize(
    ("x0", "dtype", "shape"),
    [
        ([1, 2, 3], np.float64, (3,)),
        (5, np.float64, (1,)),
        (2.5, np.float64, (1,)),
        (np.array([True, False]), np.float64, (2,)),
        (np.ones((2, 3), np.float32), np.float32, (2, 3)),
        (np.ones(3, np.float16), np.float16, (3,)),
        (np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.float64, (2, 3)),
        (np.arange(10.0)[::-2], np.float64, (5,)),
        (np.arange(3, dtype=">f8"), np.float64, (3,)),
        (np.empty(0), np.float64, (0,)),
    ],
)
def test_points_of_numpy(x0, dtype, shape):
    result = minimize(None, x0, jac=twice, max_steps=4, tol=0, lr=0.1)
    for array in (result.x, result.jac):
        assert (type(array), array.dtype, array.shape) == (np.ndarray, np.dtype(dtype), shape)
    wanted = np.asarray(x0, np.float64).reshape(shape)
    wanted = wanted - 0.4 * np.sign(wanted)
    np.testing.assert_allclose(result.x, wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_points_of_torch(dtype, shape):
    x0 = torch.ones(shape, dtype=dtype)
    for arguments in ({"jac": twice}, {"fun": lambda x: x.square().sum()}):
        result = minimize(x0=x0, max_steps=4, tol=0, lr=0.1, **arguments)
        for tensor in (result.x, result.jac):
            assert type(tensor) is torch.Tensor
            assert tensor.dtype == (torch.float64 if dtype == torch.int64 else dtype)
            assert tensor.shape == shape
        torch.testing.assert_close(result.x.double(), torch.full(shape, 0.6).double(), rtol=0.02, atol=0.02)
    assert torch.equal(x0, torch.ones(shape, dtype=dtype))


# When it ends


@pytest.mark.parametrize("options", [{}, SINGLE])
def test_it_ends_where_nothing_is_a_number(options):
    with np.errstate(all="ignore"):
        result = minimize(None, [1.0, 2.0], jac=lambda x: x**3, optimizer=SGD, lr=1e3, max_steps=100, **options)
    assert (result.status, result.success) == (2, False)
    assert result.nit < 20
    assert result.message.endswith("led to NaN or infinity: try a smaller lr, or another x0.")
    result = minimize(None, [math.nan], jac=twice, **options)
    assert (result.status, result.nit) == (2, 1)


@pytest.mark.parametrize("options", [{}, SINGLE])
def test_no_steps_and_no_tolerance(options):
    none = minimize(None, [1.0], jac=twice, max_steps=0, **options)
    assert (none.nit, none.status, none.x, none.jac) == (0, 1, 1.0, 2.0)
    assert none.message == "All max_steps=0 steps were taken."
    still = minimize(None, [0.0], jac=twice, max_steps=20, tol=0, **options)
    assert (still.nit, still.success) == (20, False)
    still = minimize(None, [0.0], jac=twice, max_steps=20, **options)
    assert (still.nit, still.success, still.message) == (1, True, "Converged: step 1 moved x by less than tol=1e-06.")


@pytest.mark.parametrize(("options", "way"), [({}, f"{ONE_KERNEL}, called for each step"), (SINGLE, STEPS)])
def test_callbacks_are_scipys(options, way):
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)

    result = minimize(lambda x: x @ x, start(), jac=twice, max_steps=9, tol=0, callback=callback, **options)
    assert result.way == way
    assert [now.nit for now in seen] == list(range(1, 10))
    assert np.array_equal(seen[-1].x, result.x)
    assert [now.fun for now in seen] == [now.x @ now.x for now in seen]
    assert not np.array_equal(seen[0].x, seen[1].x)
    close(result.x, adam(start(), twice, 9, tol=0)[0])

    points = []

    def stop(xk):
        points.append(xk)
        if len(points) == 4:
            raise StopIteration

    result = minimize(None, start(), jac=twice, callback=stop, **options)
    assert (result.nit, result.status, result.success) == (4, 99, False)
    assert result.message == "`callback` raised `StopIteration`."
    assert np.array_equal(result.x, points[-1])


@pytest.mark.parametrize("options", [{}, SINGLE])
def test_errors_go_through(options):
    def jac(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        minimize(None, start(), jac=jac, **options)

    def callback(x):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        minimize(None, start(), jac=twice, callback=callback, **options)


# What won't do


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x0": None}, TypeError, "minimize needs x0"),
        ({"jac": None}, TypeError, "minimize needs fun or its gradient"),
        ({"fun": 3}, TypeError, "fun must be a function or None. Received: 3"),
        ({"jac": "2-point"}, TypeError, "jac must be a function, a compiled one, or None"),
        ({"callback": 3}, TypeError, "callback must be a function or None"),
        ({"optimizer": "adam"}, TypeError, "minimize takes the class of an optimizer. Received: str"),
        ({"x0": [1j]}, TypeError, "x0 must be of real numbers"),
        ({"x0": ["a"]}, TypeError, "x0 must be of real numbers"),
        ({"x0": torch.ones(2, dtype=torch.complex64)}, TypeError, "x0 must be a dense tensor of real numbers"),
        ({"max_steps": -1}, ValueError, "max_steps must be an integer of at least 0. Received: -1"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be an integer of at least 0. Received: 1.5"),
        ({"tol": -1e-9}, ValueError, "tol must be a number of at least 0. Received: -1e-09"),
        ({"tol": math.nan}, ValueError, "tol must be a number of at least 0. Received: nan"),
        ({"tol": None}, TypeError, "tol must be a number of at least 0. Received: None"),
        ({"betas": (1.0, 0.999)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, ValueError, "Invalid beta parameter at index 1: -0.1"),
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        ({"lr": math.nan}, ValueError, "Invalid learning rate: nan"),
        ({"momentum": 0.9}, TypeError, "unexpected keyword argument 'momentum'"),
        ({"jac": lambda x: x[:2]}, ValueError, r"jac must give an array of the shape of x0, \(3,\)"),
        ({"jac": lambda x: 3.0}, ValueError, r"jac must give an array of the shape of x0, \(3,\)"),
        ({"jac": None, "fun": lambda x: x}, TypeError, r"one number. Received: a tensor of shape \(3,\)"),
        ({"jac": None, "fun": lambda x: 1.0}, TypeError, "one number. Received: float"),
        ({"jac": None, "fun": lambda x: np.sin(x).sum()}, TypeError, "It went to numpy"),
    ],
)
def test_arguments_that_will_not_do(arguments, error, match):
    for _ in range(2):
        with pytest.raises(error, match=match):
            minimize(**{"x0": [1.0, 2.0, 3.0], "jac": twice, **arguments})


def test_scipy_is_asked_for(monkeypatch):
    module = sys.modules["optimizers.minimize"]
    module._parts.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "literate-optimizers\[minimize\]"'):
        minimize(None, [1.0], jac=twice)
    monkeypatch.undo()
    assert minimize(None, [1.0], jac=twice).nit


def test_importing_the_package_imports_neither_scipy_nor_sympy():
    code = "import sys, optimizers; print([m for m in ('scipy', 'sympy') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_recording_refuses_what_it_can_not_know():
    with pytest.raises(Unrecordable, match="more than 8 arrays"):
        record(lambda x: sum((x * np.full(3, k) for k in range(9)), x), np.ones(3))
    with pytest.raises(Unrecordable, match=r"an array of shape \(2, 3\)"):
        record(lambda x: x * np.ones((2, 3)), np.ones(3))
    with pytest.raises(Unrecordable, match="a str is an operand"):
        record(lambda x: x + "a", np.ones(3))
    with pytest.raises(Unrecordable, match="an array of object"):
        record(lambda x: np.array([None] * 3) + x, np.ones(3))


# The experiment


def test_everyone_in_the_table_makes_the_same_walk():
    ends = {name: run() for name, run in job.Quadratic(0.01, 60).runs(None).items()}
    reference, _ = adam(job.X0, twice, 60, lr=0.01)
    for name, (x, steps, _) in ends.items():
        if "L-BFGS" not in name:
            assert steps == 60
            np.testing.assert_allclose(x, reference, rtol=1e-7)


def test_rust_makes_the_same_walk():
    try:
        rust = Rust()
    except RuntimeError as error:
        pytest.skip(str(error))
    for reordered in (False, True):
        x, steps = rust.minimize(job.X0, 0.01, 10_000, 1e-6, reordered)
        wanted, as_many = adam(job.X0, twice, 10_000, lr=0.01, reordered=reordered)
        assert steps == as_many
        np.testing.assert_allclose(x, wanted, rtol=1e-9, atol=1e-12)


def test_the_table_is_printed(capsys):
    job.print_table("a title", {"one": lambda: (np.ones(2), 3, 4)}, 0.01, lambda x: float(x @ x))
    head, rule, row = (line for line in capsys.readouterr().out.split("\n") if line.startswith("|"))
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["a title", "steps", "gradients"]
    assert [cell.strip() for cell in row.split("|")[1:5]] == ["one", "3", "4", "2"]
    assert len(head) == len(rule) == len(row)


def test_gradients_in_c_are_those_of_scipy():
    x = start(10)
    result = minimize(None, x, jac=job.c_gradients()["rosenbrock"], max_steps=0)
    close(result.jac, rosen_der(x))


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--seconds", "nan"]])
def test_the_experiment_refuses_no_time(argv, capsys):
    with pytest.raises(SystemExit):
        job.main(argv)
    assert "--seconds must be positive" in capsys.readouterr().err


def test_an_optimizer_in_place_of_its_class_is_refused():
    with pytest.raises(TypeError, match=r"takes the class of an optimizer\. Received: Adam"):
        minimize(None, np.ones(2), jac=lambda x: x, optimizer=Adam([torch.zeros(1)]))
