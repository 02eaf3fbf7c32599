"""
Steps in which gradients are missing: each parameter has a count of its own, and a plan holds whichever have gradients.
"""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optimizers
from optimizers import SGD, Adam, AdamW, NAdam, RAdam, RMSprop
from optimizers.engines import compiler
from optimizers.engines.launch import Launch
from tests import helpers
from tests.helpers import same, same_state

PLAIN = {"foreach": False, "fused": False}


def params(count=6, shape=(3, 5), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(count)]


def plan_of(optimizer):
    return optimizer._stepper._plan


class Run:
    """An optimizer beside its twin without kernels, and the plans that it has had."""

    def __init__(self, make, ps, **twin):
        self.ps, self.qs = ps, helpers.copies(ps)
        self.fused, self.plain = make(self.ps), make(self.qs)
        for group in self.plain.param_groups:
            group.update(PLAIN)
        self.generator = torch.Generator().manual_seed(7)
        self.plans = []

    def step(self, missing=()):
        for i, (p, q) in enumerate(zip(self.ps, self.qs, strict=True)):
            grad = torch.randn(p.shape, generator=self.generator)
            p.grad, q.grad = (None, None) if i in missing else (grad, grad.clone())
        self.fused.step()
        self.plain.step()
        self.plans.append(plan_of(self.fused))
        return self

    @property
    def new_plans(self):
        # A first step that makes more state leaves no plan.
        plans = [plan for plan in self.plans if plan is not None]
        return sum(one is not two for one, two in zip(plans[1:], plans[:-1], strict=True))

    def assert_alike(self, bound=0.0):
        for p, q in zip(self.ps, self.qs, strict=True):
            assert torch.allclose(p, q, rtol=0, atol=bound) if bound else same(p.detach(), q.detach())
        if not bound:
            assert same_state(self.fused, self.plain)
        counts = [[int(s["step"]) for s in o.state.values() if "step" in s] for o in (self.fused, self.plain)]
        assert counts[0] == counts[1]


class Counting(optimizers.GenericAdaptiveOptimizer):
    """A rule that uses its count, and is the same bit for bit by kernels."""

    def init_state(self, state, group, param):
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(param)

    def step_param(self, state, group, grad, param):
        state["exp_avg"].mul_(0.5).add_(grad)
        param.sub_(state["exp_avg"] * (group["lr"] * 0.5 ** state["step"]))


def exact(ps):
    return Counting(ps, {}, lr=0.1)


PATTERNS = {
    "in turns": lambda t: {i for i in range(6) if i % 3 == t % 3},
    "one for good": lambda t: {2} if t > 1 else set(),
    "all but one": lambda t: set(range(6)) - {t % 6},
    "all now and then": lambda t: set(range(6)) if t % 4 == 3 else set(),
    "first and last": lambda t: {0, 5} if t % 2 else {1},
    "at random": lambda t: set(random.Random(t).sample(range(6), 3)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("known", [False, True], ids=["unseen", "seen"])
def test_one_plan_holds_whoever_has_a_gradient(pattern, known):
    run = Run(exact, params()).step()
    if known:
        run.fused.state_dict()
    run.step()
    for t in range(12):
        run.step(PATTERNS[pattern](t))
    run.assert_alike()
    assert {e.reader for e in run.fused.explain().entries} <= {"fused"}
    assert run.new_plans <= 1  # The state was looked at before its plan was made.


@pytest.mark.parametrize("shape", [(128, 128), (0,), (), (1,)], ids=str)
def test_sizes_of_all_kinds(shape):
    run = Run(exact, params(5, shape)).step().step()
    for t in range(6):
        run.step({t % 5, (2 * t) % 5})
    run.assert_alike()
    assert run.new_plans == 0


RULES = {
    "SGD": lambda ps: SGD(ps, lr=0.1),
    "SGD with momentum": lambda ps: SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda ps: Adam(ps, lr=0.1, amsgrad=True),
    "NAdam": lambda ps: NAdam(ps, lr=0.1),
    "RAdam": lambda ps: RAdam(ps, lr=0.1),
    "RMSprop": lambda ps: RMSprop(ps, lr=0.1, centered=True, momentum=0.5),
    "groups": lambda ps: AdamW(
        [
            {"params": ps[:2], "weight_decay": 0.0},
            {"params": ps[2:4], "weight_decay": 0.1, "lr": 0.2},
            {"params": ps[4:]},
        ]
    ),
    "many groups": lambda ps: Adam([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(ps)]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [6, 40])
def test_rule_moves_as_the_plain_one(rule, count):
    run = Run(RULES[rule], params(count)).step().step()
    chance = random.Random(3)
    for _ in range(15):
        run.step(set(chance.sample(range(count), count // 3)))
    run.assert_alike(bound=2e-6)
    assert all(e.reader == "fused" for e in run.fused.explain().entries)
    if rule != "RAdam":
        assert run.new_plans == 0


def test_rule_that_does_something_else_at_another_count_gets_a_plan_for_it():
    """RAdam has momentum alone for its first steps."""
    run = Run(RULES["RAdam"], params())
    for t in range(20):
        run.step({0} if t < 7 else {1} if t % 2 else ())
    run.assert_alike(bound=2e-6)
    assert run.plans[-1] is run.plans[-8]


def test_parameter_that_never_had_a_gradient_joins_with_a_plan_of_its_own():
    run = Run(exact, params())
    for t in range(8):
        run.step({4, 5} if t < 2 else {5} if t < 5 else {0})
    run.assert_alike()
    assert run.new_plans == 2
    assert run.plans[-1] is run.plans[5]


@pytest.mark.parametrize("idle", [1, 3, 4, 5, 40])
def test_one_of_many_that_never_had_a_gradient_joins(idle):
    for late in {0, idle // 2, idle - 1}:
        run = Run(exact, params(idle + 2))
        frozen = set(range(idle))
        for t in range(6):
            run.step(frozen if t < 3 else frozen - {late})
        run.assert_alike()
        assert run.new_plans == 1


def test_absent_parameter_whose_memory_is_exchanged_comes_back_from_there():
    run = Run(exact, params()).step().step()
    run.step({3})
    old = run.ps[3].data
    kept = old.clone()
    run.ps[3].data = torch.full_like(old, 2.0)
    run.qs[3].data = torch.full_like(old, 2.0)
    run.step({3}).step()
    run.assert_alike()
    assert same(old, kept)


GRADIENTS = {
    "transposed": lambda p: torch.ones_like(p).t().contiguous().t(),
    "with gaps": lambda p: torch.ones(10, 10)[:3, ::2],
    "expanded": lambda p: torch.ones(3, 1).expand(3, 5),
}


@pytest.mark.parametrize("grad", GRADIENTS.values(), ids=GRADIENTS)
def test_absent_parameter_may_come_back_with_a_gradient_that_lies_otherwise(grad):
    run = Run(exact, params()).step().step().step({3})
    for ps, optimizer in ((run.ps, run.fused), (run.qs, run.plain)):
        for p in ps:
            p.grad = grad(p)
        optimizer.step()
    run.step().step({1})
    run.assert_alike()


def test_absent_parameter_may_come_back_with_a_sparse_gradient():
    run = Run(lambda ps: SGD(ps, lr=0.1), params()).step().step({3})
    for ps, optimizer in ((run.ps, run.fused), (run.qs, run.plain)):
        ps[3].grad = torch.ones(3, 5).to_sparse()
        optimizer.step()
    run.step({3}).step().assert_alike()


def test_version_of_an_absent_parameter_stays():
    run = Run(exact, params()).step().step()
    run.fused.state_dict()
    run.step({3}).step({3})
    states = run.fused.state
    before = [(p._version, states[p]["exp_avg"]._version) for p in run.ps]
    run.step({3})
    after = [(p._version, states[p]["exp_avg"]._version) for p in run.ps]
    assert [(a - b, x - y) for (a, x), (b, y) in zip(after, before, strict=True)] == [
        (0, 0) if i == 3 else (1, 1) for i in range(6)
    ]


def test_report_tells_of_those_that_stepped():
    run = Run(exact, params()).step().step()
    run.step({3, 4})
    (entry,) = run.fused.explain().entries
    assert (entry.tensors, entry.elements, entry.cohorts, entry.launches, entry.steps) == (4, 60, 1, 1, (3,))
    run.step()
    (entry,) = run.fused.explain().entries
    assert (entry.tensors, entry.cohorts, entry.steps) == (6, 2, (3, 4))
    run.step(set(range(6)))
    assert "no parameter has a gradient" in str(run.fused.explain())
    run.step().assert_alike()


@pytest.mark.parametrize("change", ["replaced", "written", "deleted", "loaded", "copied"])
def test_state_that_is_changed_while_its_parameter_is_absent_counts(change):
    run = Run(exact, params()).step().step().step({3})
    for ps, name in ((run.ps, "fused"), (run.qs, "plain")):
        optimizer = getattr(run, name)
        state = optimizer.state[ps[3]]
        if change == "replaced":
            state["exp_avg"] = torch.full((3, 5), 0.5)
        elif change == "written":
            state["exp_avg"].fill_(0.5)
            state["step"].fill_(7.0)
        elif change == "deleted":
            del optimizer.state[ps[3]]
        elif change == "loaded":
            saved = optimizer.state_dict()
            for entries in saved["state"].values():
                entries["exp_avg"] = entries["exp_avg"] + 1
            optimizer.load_state_dict(saved)
        else:
            setattr(run, name, copy.deepcopy(optimizer))
            ps[:] = [p for group in getattr(run, name).param_groups for p in group["params"]]
    run.step({3}).step({2}).step().assert_alike()


def test_step_that_is_refused_leaves_all_as_it_was():
    run = Run(exact, params()).step().step().step({3})
    before = helpers.values(run.ps)
    run.fused.param_groups[0]["lr"] = "much"
    run.ps[3].grad = torch.ones(3, 5)
    run.ps[1].grad = None
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        run.fused.step()
    assert same(before, helpers.values(run.ps))
    run.fused.param_groups[0]["lr"] = 0.1
    run.step().assert_alike()


@pytest.mark.parametrize("count", [float("nan"), float("inf")])
def test_step_that_fails_on_a_count_is_forgotten(count):
    """The next one must not go on with half of what that one has found out."""
    run = Run(exact, params()).step().step()
    count_of = run.fused.state[run.ps[1]]["step"]
    run.step()
    kept, before = count_of.clone(), helpers.values(run.ps)
    count_of.fill_(count)
    run.ps[0].grad = None
    with pytest.raises((ValueError, OverflowError)):
        run.fused.step()
    count_of.copy_(kept)
    for p in run.ps:
        p.grad = None
    run.fused.step()
    assert same(before, helpers.values(run.ps))
    run.step().step({2}).assert_alike()


def test_step_that_is_interrupted_is_forgotten(monkeypatch):
    run = Run(exact, params()).step().step()
    before = helpers.values(run.ps)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Launch, "_arrange", interrupt)
        run.ps[0].grad = None
        with pytest.raises(KeyboardInterrupt):
            run.fused.step()
    assert same(before, helpers.values(run.ps))
    run.fused.zero_grad()
    run.fused.step()
    assert same(before, helpers.values(run.ps))
    run.step().step({2}).assert_alike()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("wrong", [{"lr": "much"}, {"lr": None}, {"amsgrad": True}], ids=str)
def test_what_is_wrong_with_a_group_that_does_not_step_is_its_own_affair(fused, wrong):
    ps = params()
    optimizer = Adam([{"params": ps[:3]}, {"params": ps[3:]}], fused=fused)
    for t in range(6):
        for i, p in enumerate(ps):
            p.grad = None if t > 1 and (i > 2 or i == t % 3) else torch.ones_like(p)
        if t == 2:
            optimizer.param_groups[1].update(wrong)
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in ps] == [5, 5, 4, 2, 2, 2]


def test_parameter_that_is_moved_to_another_group_while_it_is_absent_has_its_options():
    def make(ps):
        return Counting([{"params": ps[:3], "lr": 0.1}, {"params": ps[3:], "lr": 0.2}], {}, lr=0.1)

    run = Run(make, params()).step().step().step({2})
    for optimizer in (run.fused, run.plain):
        first, second = optimizer.param_groups
        second["params"].insert(0, first["params"].pop())
    run.step().step({2}).step().assert_alike()


@pytest.mark.parametrize("reader", [{}, PLAIN], ids=["fused", "plain"])
def test_state_of_a_parameter_that_does_not_step_is_left_as_it_is(reader):
    ps = params(3)
    optimizer = Counting(ps, dict(reader), lr=0.1)
    for p in ps:
        p.grad = torch.ones_like(p)
    optimizer.step()
    ps[0].grad = ps[1].grad = None
    optimizer.state[ps[0]]["step"] = 3
    optimizer.state[ps[1]]["step"].fill_(float("nan"))
    optimizer.step()
    assert optimizer.state[ps[0]]["step"] == 3
    assert type(optimizer.state[ps[0]]["step"]) is int
    assert optimizer.state[ps[1]]["step"].isnan()
    assert int(optimizer.state[ps[2]]["step"]) == 2


def test_no_compiler_is_called_where_no_kernel_is_wanted(monkeypatch):
    monkeypatch.setattr(compiler, "load_as", lambda *_: pytest.fail("nobody asked for a kernel"))
    ps = params(8)
    optimizer = Adam(ps, foreach=True)
    ps[0].grad = torch.ones_like(ps[0])
    for _ in range(2):
        optimizer.step()


def test_schedule_reaches_those_that_come_back():
    run = Run(lambda ps: Adam(ps, lr=0.1), params())
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (run.fused, run.plain)]
    for t in range(9):
        run.step({t % 3})
        for schedule in schedules:
            schedule.step()
    run.assert_alike(bound=1e-6)
    assert run.new_plans <= 1


def test_group_that_is_added_makes_a_new_plan():
    run = Run(exact, params(4)).step().step({1})
    for ps, qs, optimizer in ((run.ps, params(2, seed=5), run.fused), (run.qs, params(2, seed=5), run.plain)):
        optimizer.add_param_group({"params": qs, "lr": 0.3})
        ps.extend(qs)
    for group in run.plain.param_groups:
        group.update(PLAIN)
    run.step({0, 5}).step({1}).step().assert_alike()


def test_parameters_that_share_memory_wait_apart():
    """One that is absent must not make the others step one after the other."""
    base = torch.randn(4, 5)
    whole, part = torch.nn.Parameter(base), torch.nn.Parameter(base[:2])
    other = torch.nn.Parameter(torch.randn(3))
    optimizer = exact([whole, part, other])
    part.grad, other.grad = torch.ones(2, 5), torch.ones(3)
    optimizer.step()
    part.grad, whole.grad = None, torch.ones(4, 5)
    for _ in range(2):
        optimizer.step()
    assert [e.reader for e in optimizer.explain().entries] == ["fused"]


EVENTS = st.lists(st.sets(st.integers(0, 4)), min_size=2, max_size=7)


@settings(max_examples=40, deadline=None)
@given(first=st.sets(st.integers(0, 4)), events=EVENTS, looks=st.sets(st.integers(0, 6)), momentum=st.booleans())
def test_any_order_of_missing_gradients(first, events, looks, momentum):
    make = (lambda ps: SGD(ps, lr=0.5, momentum=0.5)) if momentum else exact
    run = Run(make, params(5, (2, 3))).step(first)
    for t, missing in enumerate(events):
        if t in looks:
            assert len(run.fused.state) == len(run.plain.state)
        run.step(missing)
    run.assert_alike()
