"""
Numbers that the device calculates: of groups, schedules and states, of rules of one's own, and in checkpoints.
"""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from optimizers import ASGD, SGD, Adam, AdamW, GenericAdaptiveOptimizer, NAdam, RAdam
from tests import helpers
from tests.helpers import same, values
from tests.rules import BY_NAME
from tests.test_fused import CHANGES, Plain, readers
from tests.triton_cases import (
    FUSED,
    OPTIONS,
    SHAPES,
    SINGLE,
    Counting,
    assert_close,
    assert_fused,
    assert_same_path,
    assert_states_agree,
    here,
    in_mode,
    modes,
    moved,
    pair,
    reports,
    run,
    same_states,
    states,
    step,
)

# ## Numbers of the device


def test_parameters_with_different_counts_share_a_launch(gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam, shapes=[(5,), (2, 3), ()], lr=0.01, weight_decay=0.1)
    start, rows = values(qs), helpers.gradients(qs, 7)
    rows = [[g if n % (i + 1) == 0 else None for i, g in enumerate(row)] for n, row in enumerate(rows)]
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert reports(optimizer) == [("fused", 3, 1)]
    assert [s["step"] for s in states(optimizer)] == [7, 4, 3]
    assert_close(ps, qs, start, 7)
    assert_states_agree(optimizer, plain, 7)


@modes
def test_groups_that_differ_only_in_numbers_share_a_launch(mode, gpu):
    qs = helpers.params([(5,), (2, 3), ()], torch.float32)
    ps, alone, rows = moved(qs, gpu), moved(qs, gpu), helpers.gradients(qs, 3)
    options = [{"lr": 0.1 * (i + 1), "weight_decay": 0.01 * (i + 1), "betas": (0.5, 0.9 + 0.01 * i)} for i in range(3)]
    groups = [{"params": [p], **o} for p, o in zip(ps, options, strict=True)]
    optimizer = run(in_mode(AdamW(groups, fused=True), mode), ps, rows)
    assert reports(optimizer) == [("fused", 3, 3)]
    for i, o in enumerate(options):
        run(in_mode(AdamW([alone[i]], fused=True, **o), mode), [alone[i]], [[row[i]] for row in rows])
        assert same(ps[i].detach(), alone[i].detach())


@modes
def test_465_groups_share_a_launch(mode, gpu):
    qs = helpers.params([(3,)] * 465, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 1)

    def groups(ps):
        return [{"params": [p], "lr": 1e-3 * (i + 1), "weight_decay": 1e-4 * (i + 1)} for i, p in enumerate(ps)]

    optimizer = run(in_mode(SGD(groups(ps), fused=True), mode), ps, rows)
    run(SGD(groups(qs), **SINGLE), qs, rows)
    assert reports(optimizer) == [("fused", 465, 465)]
    assert_close(ps, qs, start, 1)


SCHEDULES = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "from zero": lambda o: lr_scheduler.LambdaLR(o, lambda n: n / 3),
    "to zero and back": lambda o: lr_scheduler.LambdaLR(o, lambda n: abs(2 - n)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
}


@modes
@pytest.mark.parametrize("form", ["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_followed(name, form, mode, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 7)
    lr = 0.02 if form == "number" else torch.tensor(0.02, dtype=torch.float64, device=gpu)
    optimizer = in_mode(AdamW(ps, lr=lr, betas=(0.9, 0.95), fused=True), mode)
    plain = AdamW(qs, lr=0.02, betas=(0.9, 0.95), **SINGLE)
    schedules = [SCHEDULES[name](o) for o in (optimizer, plain)]
    for row in rows:
        step(optimizer, ps, row)
        step(plain, qs, row)
        for schedule in schedules:
            schedule.step()
    assert_fused(optimizer, "device" if form == "tensor" else mode)
    assert_close(ps, qs, start, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_tensor_lr_that_is_filled_is_seen_at_the_next_step(dtype, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 4)
    lr = torch.tensor(1, dtype=dtype, device=gpu)
    optimizer, plain = Adam(ps, lr=lr, fused=True), Adam(qs, lr=1.0, **SINGLE)
    for value, row in zip([1, 3, 0, 2], rows, strict=True):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = float(value)
        step(optimizer, ps, row)
        step(plain, qs, row)
    assert_fused(optimizer, "device")
    assert_close(ps, qs, start, 4)


def test_tensors_of_every_hyper_parameter_are_seen_at_the_next_step(gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 5)
    given = [torch.tensor(x, dtype=torch.float64, device=gpu) for x in (0.01, 0.9, 0.99, 1e-8, 0.0)]
    lr, beta1, beta2, eps, decay = given
    optimizer = Adam(ps, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, fused=True)
    plain = Adam(qs, **SINGLE)
    for number, row in enumerate(rows):
        for tensor, factor in zip(given, (2.0, 0.9, 0.95, 10.0, 1.0), strict=True):
            tensor.mul_(factor)
        # Without a decay the rule does something else.
        decay.fill_(0.1 * (number % 2))
        lr_now, one, two, eps_now, decay_now = (tensor.item() for tensor in given)
        plain.param_groups[0].update(lr=lr_now, betas=(one, two), eps=eps_now, weight_decay=decay_now)
        step(optimizer, ps, row)
        step(plain, qs, row)
    assert_fused(optimizer, "device")
    assert_close(ps, qs, start, 5)


class Elsewhere(Tensor):
    """In the interpreter all tensors are where the parameters are. This one says that it isn't."""

    device = property(lambda self: torch.device("meta"))


def test_lr_on_another_device_that_is_filled_is_seen_at_the_next_step(gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    lr = torch.tensor(0.1) if gpu.type == "cuda" else torch.tensor(0.1).as_subclass(Elsewhere)
    optimizer, plain = Plain(ps, lr=lr, capturable=True), Plain(qs, **SINGLE)
    for value, row in zip([0.1, 0.5, 0.025], rows, strict=True):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = lr.item()
        step(optimizer, ps, row)
        step(plain, qs, row)
    assert_fused(optimizer, "device")
    assert_close(ps, qs, start, 3)


HYPERS = {
    "decay begins": (AdamW, {"weight_decay": 0.0}, {"weight_decay": 0.1}),
    "decay ends": (AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.0}),
    "decay of gradients begins": (Adam, {"weight_decay": 0}, {"weight_decay": 0.1}),
    "momentum ends": (SGD, {"lr": 0.1, "momentum": 0.9}, {"momentum": 0.0}),
    "maximize": (Adam, {}, {"maximize": True}),
    "betas": (Adam, {}, {"betas": (0.5, 0.6)}),
    "betas are a list": (Adam, {}, {"betas": [0.5, 0.6]}),
    "lr is a numpy number": (Adam, {}, {"lr": np.float32(0.25)}),
    "lr is a tensor": (Adam, {}, {"lr": torch.tensor([0.25])}),
    "lr is another tensor": (Adam, {"lr": torch.tensor(0.5)}, {"lr": torch.tensor(0.25)}),
    "lr is no tensor": (Adam, {"lr": torch.tensor([0.5])}, {"lr": 0.25}),
}


@modes
@pytest.mark.parametrize("name", HYPERS)
def test_hyper_parameter_may_be_changed_between_steps(name, mode, gpu):
    cls, first, later = HYPERS[name]
    ps, optimizer, qs, plain = pair(gpu, cls, mode, **first)
    start, rows = values(qs), helpers.gradients(qs, 5)
    there = {k: v.to(gpu) if isinstance(v, Tensor) else v for k, v in later.items()}
    for number, row in enumerate(rows):
        if number == 3:
            optimizer.param_groups[0].update(there)
            plain.param_groups[0].update(later)
        step(optimizer, ps, row)
        step(plain, qs, row)
    assert readers(optimizer) == ["fused"]
    assert_close(ps, qs, start, 5)
    assert_states_agree(optimizer, plain, 5)


class Parts(GenericAdaptiveOptimizer):
    """A rule with hyper-parameters in all sorts of containers, and one of its own."""

    factor = 1.0

    def step_param(self, state, group, grad, param):
        a, b, c = group["listed"][1], group["mixed"][1], group["nested"][1][0]
        param.sub_(grad, alpha=group["lr"] * a * b * c * self.factor)


def _in_a_list(optimizer, group):
    group["listed"][1] = 0.25


def _in_a_mixed_tuple(optimizer, group):
    group["mixed"] = (True, 0.25)


def _in_a_nested_tuple(optimizer, group):
    group["nested"] = (1.0, (0.25, 2.0))


def _of_its_own(optimizer, group):
    optimizer.factor = 0.25


@modes
@pytest.mark.parametrize("change", [_in_a_list, _in_a_mixed_tuple, _in_a_nested_tuple, _of_its_own])
def test_number_of_a_rule_may_be_changed_wherever_it_is(change, mode, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 4)
    for tensors, reader in ((ps, {"capturable": mode == "device"}), (qs, SINGLE)):
        options = {"listed": [1.0, 0.5], "mixed": (True, 0.5), "nested": (1.0, (0.5, 2.0))}
        optimizer = run(Parts(tensors, {**options, **reader}, lr=1.0), tensors, rows[:2])
        change(optimizer, optimizer.param_groups[0])
        run(optimizer, tensors, rows[2:])
    assert_close(ps, qs, start, 4)


def test_parameters_on_both_sides_of_a_branch_share_a_launch(gpu):
    ps, optimizer, qs, plain = pair(gpu, RAdam, shapes=[(5,), (2, 3), ()], lr=0.02, betas=(0.7, 0.95))
    start, rows = values(qs), helpers.gradients(qs, 9)
    for row in rows[:5]:
        row[1] = None
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert reports(optimizer) == [("fused", 3, 1)]
    assert [s["step"] for s in states(optimizer)] == [9, 4, 9]
    assert "way == 0" in optimizer.kernel_source()
    assert_close(ps, qs, start, 9)
    assert_states_agree(optimizer, plain, 9)


@pytest.mark.parametrize(
    ("cls", "names"), [(NAdam, {"step", "mu_product"}), (ASGD, {"step", "eta", "mu"})], ids=["nadam", "asgd"]
)
def test_numbers_of_a_state_live_on_the_device(cls, names, gpu):
    options = {"t0": 2, "lambd": 0.1} if cls is ASGD else {}
    optimizer = assert_same_path(gpu, cls, **options)
    for state in optimizer.state.values():
        assert {k for k, v in state.items() if v.dim() == 0 and v.dtype == torch.float32} >= names
        assert {(state[k].device, state[k].dtype, state[k].dim()) for k in names} == {(gpu, torch.float32, 0)}


@pytest.mark.parametrize("number", range(3))
def test_counts_are_on_the_device_that_counts(number, gpu):
    lr = torch.tensor(0.1, device=gpu) if number == 2 else 0.1
    ps, optimizer, *_ = pair(gpu, Adam, "device" if number == 1 else "host", lr=lr)
    run(optimizer, ps, helpers.gradients(ps, 2))
    count = optimizer.state[ps[0]]["step"]
    assert (count.device, count.dtype, count.shape) == (gpu if number else torch.device("cpu"), torch.float32, ())


# ## Rules of one's own


class Heavy(GenericAdaptiveOptimizer):
    """Its first step adds to the state."""

    def step_param(self, state, group, grad, param):
        if "buffer" in state:
            state["buffer"].mul_(0.9).add_(grad, alpha=0.3)
        else:
            state["buffer"] = grad.clone()
        param.sub_(state["buffer"], alpha=group["lr"])


def heavy(ps, **options):
    return Heavy(ps, options, lr=0.1)


@modes
def test_rule_defined_here_is_fused_without_registration(mode, gpu):
    assert_same_path(gpu, Plain, mode)
    assert_same_path(gpu, heavy, mode)


@modes
def test_parameter_that_joins_later_has_a_first_step_of_its_own(mode, gpu):
    ps, optimizer, qs, plain = pair(gpu, heavy, mode, shapes=[(5,), (2, 3), ()])
    start, rows = values(qs), helpers.gradients(qs, 5)
    rows[0][1] = rows[0][2] = rows[1][1] = rows[3][0] = None
    for row in rows:
        step(optimizer, ps, row)
        step(plain, qs, row)
    assert_fused(optimizer, mode)
    assert_close(ps, qs, start, 5)
    assert_states_agree(optimizer, plain, 5)


NUMBERS = {
    "bias": lambda t, a: a / (1 - 0.9**t),
    "reciprocal of a sum": lambda t, a: 1 / (t + a),
    "reciprocal of a difference": lambda t, a: (2.5 - a * t) ** -1,
    "root of a sum": lambda t, a: (t + a) ** 0.5,
    "reciprocal of a root": lambda t, a: (t + a) ** -0.5,
    "power of a sum": lambda t, a: (t + a) ** -1.5,
    "powers": lambda t, a: a**t - t**a + 2**-t,
    "nested quotients": lambda t, a: (t / (a + 1 / (t + 1))) / (t - a / 3),
    "minimum": lambda t, a: min(a, t / 5),
    "maximum": lambda t, a: max(0.1, 1 - t / 10),
    "absolute": lambda t, a: abs(1 - t * a),
    "exp": lambda t, a: np.exp(-t / 5),
    "log": lambda t, a: np.log(t + 1),
    "cosine": lambda t, a: np.cos(t * np.pi / 10),
    "case": lambda t, a: 0.5 if t == 3 else a,
    "cases": lambda t, a: a if 1 < t < 4 else 1 / (t + 1) if t != 5 else 0.0,
    "huge": lambda t, a: 1e300 * t * 1e-300,
    "no number of t": lambda t, a: 1 / 3,
    "remainder": lambda t, a: a if t % 2 else 1.0,
    "root of math": lambda t, a: a / math.sqrt(t),
    "tanh of numpy": lambda t, a: a * np.tanh(t),
}
#: What symbols can't have is read in Python.
READ_IN_PYTHON = {"remainder", "root of math", "tanh of numpy"}


@pytest.mark.parametrize("name", NUMBERS)
def test_number_is_what_python_calculates(name, gpu):
    class Numbered(Counting):
        def step_param(self, state, group, grad, param):
            param.sub_(grad, alpha=NUMBERS[name](state["step"], group["lr"]))

    qs = helpers.params(SHAPES, torch.float64)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 6)
    optimizer = run(Numbered(ps, {"capturable": True}, lr=0.3), ps, rows)
    run(Numbered(qs, SINGLE, lr=0.3), qs, rows)
    assert_fused(optimizer, "host" if name in READ_IN_PYTHON else "device")
    assert optimizer.state[ps[0]]["step"].device == (torch.device("cpu") if name in READ_IN_PYTHON else gpu)
    assert_close(ps, qs, start, 6)


class Seen(Counting):
    """On a way that no step goes, an entry of the state is missing."""

    def step_param(self, state, group, grad, param):
        if state["step"] == 2:
            state["seen"] = grad.clone()
        if state["step"] > 3:
            param.add_(state["seen"])
        param.sub_(grad, alpha=group["lr"])


class Tabled(Counting):
    """A symbol is no key."""

    def step_param(self, state, group, grad, param):
        param.sub_(grad, alpha=dict.fromkeys(range(9), 0.5)[state["step"]])


class Failing(Counting):
    """The first step of all is not the first step of a way."""

    def step_param(self, state, group, grad, param):
        for number in range(4):
            if state["step"] == number:
                factor = 0.1 * number
        param.sub_(grad, alpha=factor)


@pytest.mark.parametrize("cls", [Seen, Tabled, Failing])
def test_rule_that_fails_with_symbols_is_read_in_python(cls, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(cls(ps, {"capturable": True}, lr=0.1), ps, rows)
    run(cls(qs, SINGLE, lr=0.1), qs, rows)
    assert_fused(optimizer, "host")
    assert_close(ps, qs, start, 3)


class Phased(Counting):
    """A state has a word, which each parameter may have another of."""

    def init_state(self, state, group, param):
        super().init_state(state, group, param)
        state["phase"] = "late" if param.dim() else "early"

    def step_param(self, state, group, grad, param):
        param.sub_(grad.neg() if state["phase"] == "late" else grad, alpha=group["lr"] / state["step"])


@modes
def test_word_of_a_state_is_that_of_its_parameter(mode, gpu):
    assert_same_path(gpu, lambda ps, **options: Phased(ps, options, lr=0.1), mode)


class Some(Counting):
    """Only some of the parameters have a further number in their state."""

    scalar_state = ("step", "product")

    def init_state(self, state, group, param):
        super().init_state(state, group, param)
        if param.dim() == group["dim"]:
            state["product"] = 1.0

    def step_param(self, state, group, grad, param):
        factor = 1.0
        if "product" in state:
            factor = state["product"] = state["product"] * 0.5
        param.sub_(grad, alpha=group["lr"] * factor)


@modes
@pytest.mark.parametrize("dim", [0, 2])
def test_number_that_only_some_parameters_have_is_counted(dim, mode, gpu):
    assert_same_path(gpu, lambda ps, **options: Some(ps, {"dim": dim, **options}, lr=0.1), mode)


@modes
def test_rule_that_moves_nothing_counts(mode, gpu):
    class Idle(Counting):
        def step_param(self, state, group, grad, param):
            pass

    ps, optimizer, qs, _ = pair(gpu, lambda ps, **options: Idle(ps, options, lr=0.1), mode)
    start = values(qs)
    run(optimizer, ps, helpers.gradients(qs, 3))
    assert_fused(optimizer, mode)
    assert same(here(ps), start)
    assert [s["step"] for s in states(optimizer)] == [3, 3]


@modes
def test_rule_without_numbers_and_without_state_is_fused(mode, gpu):
    class Signs(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.sub_(grad.sign())

    assert_same_path(gpu, lambda ps, **options: Signs(ps, options, lr=0.1), mode)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_change_in_the_middle_of_training_is_seen_in_device_mode(change, gpu):
    qs = helpers.params([(4, 4), (5,), (4, 4)], torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 6)
    optimizer, plain = Plain(ps, capturable=True), Plain(qs, **SINGLE)
    for stepping, params in ((optimizer, ps), (plain, qs)):
        for number, row in enumerate(rows):
            for p, g in zip(params, row, strict=True):
                p.grad = g.clone().to(p.device)
            if number >= 3:
                change(stepping, params, number)
            stepping.step()
    assert_close(ps, qs, start, 6)
    assert_states_agree(optimizer, plain, 6)


@pytest.mark.parametrize("order", ["hhdhdd", "ddhdhh"])
def test_mode_may_change_between_steps(order, gpu):
    ps, optimizer, qs, plain = pair(gpu, NAdam)
    start, rows = values(qs), helpers.gradients(qs, 6)
    for row, letter in zip(rows, order, strict=True):
        mode = {"h": "host", "d": "device"}[letter]
        in_mode(optimizer, mode)
        step(optimizer, ps, row)
        step(plain, qs, row)
        assert_fused(optimizer, mode)
    assert_close(ps, qs, start, 6)
    assert_states_agree(optimizer, plain, 6)


def test_tensor_lr_that_is_set_after_some_steps_is_looked_at_by_the_device(gpu):
    ps, optimizer, qs, plain = pair(gpu, Adam, "host")
    start, rows = values(qs), helpers.gradients(qs, 4)
    run(optimizer, ps, rows[:2])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.001, dtype=torch.float64, device=gpu)
    run(optimizer, ps, rows[2:])
    run(plain, qs, rows)
    assert_fused(optimizer, "device")
    assert_close(ps, qs, start, 4)


def test_groups_may_be_in_different_modes(gpu):
    qs = helpers.params([(5,), (2, 3), ()], torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 4)
    rates = [0.1, torch.tensor(0.1, dtype=torch.float64, device=gpu), 0.1]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(ps, rates, strict=True)]
    optimizer = run(Adam(groups, fused=True), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    assert sorted(e.groups for e in optimizer.explain().entries) == [(0, 2), (1,)]
    assert_close(ps, qs, start, 4)


@modes
def test_reader_of_one_group_may_be_changed_between_steps(mode, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 4)
    optimizer = run(in_mode(Adam([{"params": [p]} for p in ps]), mode), ps, rows[:2])
    optimizer.param_groups[1].update(SINGLE)
    run(optimizer, ps, rows[2:])
    run(Adam(qs, **SINGLE), qs, rows)
    assert [(e.reader, e.groups) for e in optimizer.explain().entries] == [("fused", (0,)), ("single", (1,))]
    assert_close(ps, qs, start, 4)


@modes
def test_looking_between_steps_changes_nothing(mode, gpu):
    ps, optimizer, qs, _ = pair(gpu, heavy, mode)
    others, rows = moved(qs, gpu), helpers.gradients(qs, 3)
    other = in_mode(heavy(others, **FUSED), mode)
    for row in rows:
        str(optimizer.explain())
        optimizer.kernel_source()
        step(optimizer, ps, row)
        step(other, others, row)
    assert same(here(ps), here(others))
    assert same_states(optimizer, other)


# ## Checkpoints


@pytest.mark.parametrize("first", ["host", "device"])
@pytest.mark.parametrize("second", ["host", "device"])
def test_state_dict_hands_over_between_modes_and_torch(first, second, gpu):
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 8)
    one = run(in_mode(Adam(ps, **OPTIONS, fused=True), first), ps, rows[:2])
    two = Adam(ps, **OPTIONS)
    two.load_state_dict(one.state_dict())
    run(in_mode(two, second), ps, rows[2:4])
    theirs = torch.optim.Adam(ps, **OPTIONS)
    theirs.load_state_dict(two.state_dict())
    theirs.param_groups[0].update(capturable=False, foreach=False, fused=False)
    for state in theirs.state.values():
        state["step"] = state["step"].cpu()
    run(theirs, ps, rows[4:6])
    back = Adam(ps, **OPTIONS, fused=True)
    back.load_state_dict(theirs.state_dict())
    run(in_mode(back, first), ps, rows[6:])
    plain = run(Adam(qs, **OPTIONS, **SINGLE), qs, rows)
    assert_close(ps, qs, start, 8)
    assert_states_agree(back, plain, 8)
    assert {s["step"].device for s in back.state.values()} == {gpu if first == "device" else torch.device("cpu")}


def _by_loading(ps, optimizer):
    qs = [p.detach().clone().requires_grad_() for p in ps]
    twin = type(optimizer)(qs, lr=1.0)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return qs, twin


def _by_copying(ps, optimizer):
    return copy.deepcopy((ps, optimizer))


def _by_pickling(ps, optimizer):
    return pickle.loads(pickle.dumps((ps, optimizer)))


@modes
@pytest.mark.parametrize("how", [_by_loading, _by_copying, _by_pickling])
@pytest.mark.parametrize("name", ["adam-amsgrad", "nadam", "asgd", "sgd-dampening-l2", "radam-betas-eps-l2"])
def test_copy_in_the_middle_of_training_goes_on_bit_for_bit(name, how, mode, gpu):
    ps = moved(helpers.params(SHAPES, torch.float32), gpu)
    rows = helpers.gradients(ps, 7)
    rows[1][0] = None
    optimizer = run(in_mode(BY_NAME[name].build(ps, "fused"), mode), ps, rows[:4])
    qs, twin = how(ps, optimizer)
    run(optimizer, ps, rows[4:])
    run(twin, qs, rows[4:])
    assert_fused(twin, mode)
    assert same(here(ps), here(qs))
    assert same_states(optimizer, twin)
