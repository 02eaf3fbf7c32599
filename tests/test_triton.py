"""
Kernels for GPUs, run by Triton's interpreter (`-m triton`), and the same on a GPU (`-m cuda`).

Parameters and gradients are drawn on the CPU, and what a kernel makes of them is compared there: with the single
reader, and with the C kernel of the same rule, whose bits it has to give. In host mode Python reads the rule at each
step; in device mode the kernels calculate the numbers themselves.
"""

import contextlib
import copy
import gc
import math
import pickle
import re
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler

from optimizers import ASGD, SGD, Adam, AdamFP16, AdamW, GenericAdaptiveOptimizer, NAdam, RAdam
from optimizers.engines import c_kernel, device_launch, fused, stepper, triton_kernel, triton_launch
from optimizers.engines.c_launch import CLaunch
from optimizers.engines.scaling import Scaling
from optimizers.engines.triton_kernel import BLOCK, WARPS
from optimizers.engines.triton_launch import TritonLaunch
from tests import helpers, interpreter, numerics
from tests.helpers import assert_within, same, values
from tests.rules import BY_NAME, CLASSES, READERS, RULES, ULPS_PER_STEP
from tests.test_fused import CHANGES, LAYOUTS, Plain, Thorough, allocated, as_laid_out, readers
from tests.test_recorder import WORDS, EveryWord, bound, numbers, ulps, without_nan

gpu, interpreted = interpreter.gpu, interpreter.interpreted

SINGLE, FUSED = READERS["single"], READERS["fused"]
SHAPES = [(4, 3), ()]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
FUSED_RULES = [rule for rule in RULES if "fused" in rule.readers]

modes = pytest.mark.parametrize("mode", ["host", "device"])
all_rules = pytest.mark.parametrize("rule", FUSED_RULES, ids=str)
all_classes = pytest.mark.parametrize("rule", [rule for rule in CLASSES if "fused" in rule.readers], ids=str)
#: The C kernels have the bits of those for a GPU where the processor has a fused multiply-add.
has_fma = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="the processor may have no fused multiply-add"
)


def moved(tensors, device):
    """Leaves on a device with the same values and strides, and memory of their own."""
    return [p.to(device).detach().requires_grad_() for p in helpers.copies(tensors)]


def here(tensors):
    """What tensors are now, on the CPU."""
    return [t.detach().cpu().clone() for t in tensors]


def step(optimizer, ps, row):
    helpers.step(optimizer, ps, [None if g is None else g.to(p.device) for p, g in zip(ps, row, strict=True)])


def run(optimizer, ps, rows):
    for row in rows:
        step(optimizer, ps, row)
    return optimizer


def in_mode(optimizer, mode):
    """Not every rule has `capturable` as an argument."""
    for group in optimizer.param_groups:
        group["capturable"] = mode == "device"
    return optimizer


def pair(gpu, cls, mode="device", qs=None, shapes=SHAPES, **kwargs):
    """The same parameters for an optimizer that steps by kernels for a GPU, and for one that steps plainly."""
    qs = helpers.params(shapes, torch.float32) if qs is None else qs
    ps = moved(qs, gpu)
    return ps, in_mode(cls(ps, **FUSED, **kwargs), mode), qs, cls(qs, **SINGLE, **kwargs)


def states(optimizer):
    """What the states of all parameters are now, on the CPU."""
    saved = optimizer.state_dict()["state"]
    return [{k: v.cpu().clone() for k, v in saved[i].items() if isinstance(v, Tensor)} for i in sorted(saved)]


def same_states(one, two):
    pairs = list(zip(states(one), states(two), strict=True))
    return all(a.keys() == b.keys() and all(same(a[name], b[name]) for name in a) for a, b in pairs)


def assert_states_agree(one, two, steps, precision=0.0):
    """Counts are the same, other numbers and tensors within a bound."""
    for a, b in zip(states(one), states(two), strict=True):
        assert a.keys() == b.keys()
        assert a.get("step", 0) == b.get("step", 0)
        for name in a:
            bound = max(ULPS_PER_STEP * steps, precision / torch.finfo(a[name].dtype).eps)
            assert_within(bound, [a[name]], [b[name]], [torch.zeros_like(b[name])])


def assert_close(ps, qs, start, steps):
    assert_within(ULPS_PER_STEP * steps, here(ps), qs, start)


def assert_fused(optimizer, mode):
    assert {(e.reader, e.reason) for e in optimizer.explain().entries} == {("fused", "")}
    assert ("def calculate(" in optimizer.kernel_source()) == (mode == "device")


def assert_same_path(gpu, cls, mode="device", steps=5, **kwargs):
    """As the plain reader within a bound, with the same counts."""
    ps, optimizer, qs, plain = pair(gpu, cls, mode, **kwargs)
    start, rows = values(qs), helpers.gradients(qs, steps)
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert_fused(optimizer, mode)
    assert_close(ps, qs, start, steps)
    assert_states_agree(optimizer, plain, steps)
    return optimizer


@contextlib.contextmanager
def c_kernels():
    """Tensors on the CPU have the kernels that they have without an interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fused.LAUNCHES, "cpu", CLaunch)
        yield


# ## Every rule


def with_gaps(rows):
    """One parameter has its first gradient late, the other one misses one."""
    rows[0][1] = rows[3][0] = None
    return rows


@modes
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@all_rules
def test_rule_moves_as_the_single_reader_moves(rule, dtype, mode, gpu):
    qs = helpers.params(SHAPES, dtype)
    ps, start, rows = moved(qs, gpu), values(qs), with_gaps(helpers.gradients(qs, 5))
    optimizer = run(in_mode(rule.build(ps, "fused"), mode), ps, rows)
    plain = run(rule.build(qs, "single"), qs, rows)
    assert_fused(optimizer, mode)
    # Numbers in a state have 24 bits, also that of a parameter that has more.
    assert_within(max(ULPS_PER_STEP * 5, rule.precision / torch.finfo(dtype).eps), here(ps), qs, start)
    assert_states_agree(optimizer, plain, 5, rule.precision)


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 1e-38, 1e25, -3.0])


@has_fma
@all_rules
def test_rule_gives_the_bits_of_the_c_kernel_in_all_dtypes_of_one_optimizer(rule, gpu):
    qs = [q for dtype in DTYPES for q in helpers.params([(12,)], dtype)]
    ps, rows = moved(qs, gpu), helpers.gradients(qs, 3)
    rows[0][0] = None
    for grad in rows[1]:
        grad[: len(SPECIAL)] = SPECIAL.to(grad.dtype) * (1j if grad.is_complex() else 1)
    optimizer = run(rule.build(ps, "fused"), ps, rows)
    with c_kernels():
        other = run(rule.build(qs, "fused"), qs, rows)
    assert {(e.reader, e.dtype) for e in optimizer.explain().entries} == {
        ("fused", str(dtype).removeprefix("torch.")) for dtype in DTYPES
    }
    got, want = (
        [*here(tensors), *(v for state in states(o) for v in state.values())]
        for o, tensors in ((optimizer, ps), (other, qs))
    )
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert same(*without_nan(*(torch.view_as_real(x) if x.is_complex() else x for x in (a, b))))


def distance(rule, mode, gpu, shapes, steps):
    """The largest distance of a path from the formula, in ULP, as `numerics.distance` measures it."""
    qs = helpers.params(shapes, torch.float32)
    rows = helpers.gradients(qs, steps)
    paths = [
        rule.reference(q.detach().double().numpy(), [row[i].double().numpy() for row in rows]) for i, q in enumerate(qs)
    ]
    ps, worst = moved(qs, gpu), 0.0
    optimizer = in_mode(rule.build(ps, "fused"), mode)
    for number, row in enumerate(rows):
        step(optimizer, ps, row)
        for p, path in zip(here(ps), paths, strict=True):
            apart = abs(p.double().numpy() - path[number]).max() / max(abs(theta).max() for theta in path)
            worst = max(worst, float(apart) / torch.finfo(p.dtype).eps)
    return worst


@modes
@pytest.mark.parametrize("name", ["adamw-amsgrad-maximize", "nadam-decoupled", "radam-betas-eps-l2"])
def test_hundred_steps_stay_within_the_published_distance_of_the_formula(name, mode, gpu):
    limit = numerics.published()[name, "fused", "float32"]
    assert distance(BY_NAME[name], mode, gpu, [(17, 5)], numerics.STEPS) <= limit


# ## Words


class EveryMask(GenericAdaptiveOptimizer):
    """What the masks of a rule are made of."""

    def step_param(self, state, group, grad, param):
        one, two = param > grad, param.abs() < 1.0
        for number, mask in enumerate((one & two, one | two, ~one, ~(one | ~two))):
            state[f"word_{number}"] = torch.where(mask, grad, 3.0)


def of_every_word(cls, dtype, device):
    """What each word gives, on the CPU, and where it was given numbers that a GPU may take for 0."""
    torch.manual_seed(0)
    x, y = numbers(dtype)
    p = Parameter(x.to(device))
    p.grad = y.to(device)
    optimizer = cls([p], FUSED, lr=1.0)
    optimizer.step()
    assert readers(optimizer) == ["fused"]
    return [optimizer.state[p][f"word_{i}"].cpu() for i in range(len(optimizer.state[p]))], is_tiny(x) | is_tiny(y)


def is_tiny(tensor):
    return (tensor.abs() < torch.finfo(tensor.dtype).tiny) & (tensor != 0)


@pytest.mark.parametrize("real", [torch.float32, torch.float64], ids=str)
def test_every_formula_of_c_is_one_of_triton(real):
    assert triton_kernel.language(real).formulas.keys() == c_kernel.FORMULAS.keys()


@has_fma
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_word_gives_the_bits_that_it_gives_in_c(dtype, gpu):
    got, tiny = of_every_word(EveryWord, dtype, gpu)
    with c_kernels():
        want, _ = of_every_word(EveryWord, dtype, "cpu")
    rounded = re.compile(r"(torch\.)?(exp|log|tanh|pow)|\*\*")
    apart = {}
    for name, a, b in zip(WORDS, got, want, strict=True):
        assert a.dtype == b.dtype
        if rounded.search(name) and bound(name):
            # These functions are those of libm, of numpy, or of CUDA.
            usual = ~(tiny | is_tiny(a) | is_tiny(b))
            if ulps(a[usual], b[usual]) > 6:
                apart[name] = ulps(a[usual], b[usual])
        elif not same(*without_nan(a, b)):
            apart[name] = "other bits"
    assert apart == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_mask_gives_the_bits_that_it_gives_in_c(dtype, gpu):
    got, _ = of_every_word(EveryMask, dtype, gpu)
    with c_kernels():
        want, _ = of_every_word(EveryMask, dtype, "cpu")
    assert all(same(*without_nan(a, b)) for a, b in zip(got, want, strict=True))


# ## Numbers of the device


def reports(optimizer):
    return [(e.reader, e.tensors, len(e.groups)) for e in optimizer.explain().entries]


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


class Counting(GenericAdaptiveOptimizer):
    """Rules whose numbers depend on the count."""

    def init_state(self, state, group, param):
        state["step"] = 0


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


# ## AMP


def tell(optimizer, gpu, found_inf=0.0, grad_scale=None):
    """What GradScaler tells an optimizer before its step."""
    optimizer.found_inf = torch.tensor(found_inf, device=gpu)
    optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale, device=gpu)


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
    reason = r"repeat the numbers .* of Root: .*test_triton\.py:\d+.*math\.sqrt"
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


# ## Where tensors lie, and how large they are


@modes
@pytest.mark.parametrize("name", LAYOUTS)
def test_dense_layout_is_fused(name, mode, gpu):
    qs = [Parameter(LAYOUTS[name]()), Parameter(torch.ones(3))]
    ps, optimizer, qs, plain = pair(gpu, Plain, mode, qs=qs)
    rows = [list(map(as_laid_out, qs, row)) for row in helpers.gradients(qs, 3)]
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert_fused(optimizer, mode)
    assert ps[0].stride() == qs[0].stride()
    assert same(here(ps), values(qs))
    assert same_states(optimizer, plain)


@modes
def test_steps_of_empty_tensors_are_counted(mode, gpu):
    for shapes in ([(0,), (3, 0)], [(0,), (4,), (2, 0), ()]):
        ps, optimizer, qs, plain = pair(gpu, Plain, mode, shapes=shapes)
        rows = helpers.gradients(qs, 3)
        run(optimizer, ps, rows)
        run(plain, qs, rows)
        assert_fused(optimizer, mode)
        assert same(here(ps), values(qs))
        assert same_states(optimizer, plain)


SIZES = [1, BLOCK - 1, 0, BLOCK, BLOCK + 1, 3 * BLOCK + 7]


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_size_changes_no_bit(dtype, mode, gpu):
    whole = helpers.params([(max(SIZES),)], dtype)
    ps = moved([whole[0][:size] for size in SIZES], gpu)
    rows = [[grad[:size] for size in SIZES] for (grad,) in helpers.gradients(whole, 2)]
    optimizer = run(in_mode(AdamW(ps, lr=0.1, fused=True), mode), ps, rows)
    with c_kernels():
        run(AdamW(whole, lr=0.1, fused=True), whole, [[row[-1]] for row in rows])
    assert reports(optimizer) == [("fused", len(SIZES), 1)]
    for p, size in zip(here(ps), SIZES, strict=True):
        assert same(p, here(ps)[-1][:size])
    assert_close(ps[-1:], whole, helpers.params([(max(SIZES),)], dtype), 2)


def at_offset(tensor, offset, device):
    """The same, `offset` elements behind the beginning of its memory."""
    memory = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    memory[offset:] = tensor.detach().to(device)
    return memory[offset:]


@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_memory_around_a_tensor_is_left_alone(size, offset, gpu):
    memory = torch.full((offset + size + 9,), 7.0, device=gpu)
    p = Parameter(memory[offset : offset + size])
    optimizer = run(SGD([p], lr=0.1, fused=True), [p], [[torch.ones(size)]] * 2)
    assert readers(optimizer) == ["fused"]
    around = torch.cat([memory[:offset], memory[offset + size :]])
    assert same(around.cpu(), torch.full((offset + 9,), 7.0))
    assert (p.detach() < 7.0).all()


class Placed(Thorough):
    """Its states lie at an offset."""

    offset = 0

    def init_state(self, state, group, param):
        super().init_state(state, group, param)
        for name in ("m", "v"):
            state[name] = at_offset(state[name], self.offset, param.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_place_in_memory_changes_no_bit(dtype, gpu):
    (q,) = helpers.params([(BLOCK + 9,)], dtype)
    rows = [grad for (grad,) in helpers.gradients([q], 2)]

    def path(param=0, grad=0, state=0):
        p = Parameter(at_offset(q, param, gpu))
        optimizer = Placed([p], FUSED, lr=1.0)
        optimizer.offset = state
        for row in rows:
            p.grad = at_offset(row, grad, gpu)
            optimizer.step()
        assert readers(optimizer) == ["fused"]
        assert p.data_ptr() % 16 == param * p.element_size() % 16
        return [p.detach().cpu(), *(v.cpu() for v in optimizer.state[p].values())]

    aligned = path()
    assert not same(aligned[0], q.detach())
    for offset in range(1, 6):
        assert same(path(param=offset), aligned)
        assert same(path(grad=offset), aligned)
        assert same(path(state=offset), aligned)
    assert same(path(1, 2, 3), aligned)


def test_neighbours_change_no_bit(gpu):
    qs = helpers.params([(100,), (BLOCK + 5,), (3,), ()], torch.float32)
    together, rows = moved(qs, gpu), helpers.gradients(qs, 2)
    run(Thorough(together, FUSED, lr=1.0), together, rows)
    for i, p in enumerate(moved(qs, gpu)):
        run(Thorough([p], FUSED, lr=1.0), [p], [[row[i]] for row in rows])
        assert same(p.detach(), together[i].detach())


@modes
def test_300_tensors_share_a_launch(mode, gpu):
    qs = helpers.params([(i % 7, 2) for i in range(300)], torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 1)
    optimizer = run(in_mode(SGD(ps, lr=0.1, fused=True), mode), ps, rows)
    run(SGD(qs, lr=0.1, **SINGLE), qs, rows)
    assert reports(optimizer) == [("fused", 300, 1)]
    assert_close(ps, qs, start, 1)


@modes
def test_step_allocates_no_memory_for_its_elements(mode, gpu):
    ps, optimizer, *_ = pair(gpu, Adam, mode, shapes=[(4000,), (50, 40)])
    run(optimizer, ps, helpers.gradients(ps, 2))
    if gpu.type == "cpu":
        assert max(allocated(optimizer.step), default=0) < 1000
        assert max(allocated(lambda: ps[0].detach() + 1)) >= 16000
    else:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        assert torch.cuda.max_memory_allocated() - before < 4000


@modes
def test_dtypes_get_a_launch_each(mode, gpu):
    qs = [q for dtype in DTYPES for q in helpers.params([(4, 3), ()], dtype)]
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(in_mode(Adam(ps, lr=0.01, fused=True), mode), ps, rows)
    run(Adam(qs, lr=0.01, **SINGLE), qs, rows)
    assert reports(optimizer) == [("fused", 2, 1)] * 5
    assert_fused(optimizer, mode)
    for i in range(0, len(qs), 2):
        assert_close(ps[i : i + 2], qs[i : i + 2], start[i : i + 2], 3)


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_moments_in_float32_of_parameters_in_half_precision_are_kept(dtype, mode, gpu):
    optimizer = assert_same_path(gpu, AdamFP16, mode, qs=helpers.params(SHAPES, dtype))
    moments = [v for s in optimizer.state.values() for v in s.values() if v.dtype == torch.float32 and v.dim()]
    assert len(moments) >= 2


# ## What there is no kernel for


@modes
def test_layout_with_gaps_takes_the_next_reader(mode, gpu):
    memory = torch.linspace(-1, 1, 24).to(gpu)
    qs = [Parameter(memory.cpu()[::2].clone()), Parameter(torch.ones(3))]
    ps, start, rows = [Parameter(memory[::2]), *moved(qs[1:], gpu)], values(qs), helpers.gradients(qs, 6)
    rows[3][0] = rows[4][1] = None
    optimizer = run(in_mode(Adam(ps, lr=0.1), mode), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    assert sorted(readers(optimizer)) == ["foreach", "fused"]
    assert "gaps in memory" in str(optimizer.explain())
    assert_close(ps, qs, start, 6)


@modes
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameter_that_is_there_twice_steps_twice(mode, gpu):
    qs = helpers.params([(5,)], torch.float32)
    (p,), (q,), start, rows = moved(qs, gpu), qs, values(qs), helpers.gradients(qs, 4)
    optimizer = in_mode(Adam([p, p], lr=0.1), mode)
    plain = Adam([q, q], lr=0.1, **SINGLE)
    for row in rows:
        step(optimizer, [p], row)
        step(plain, [q], row)
    assert_close([p], [q], start, 8)
    assert [s["step"] for s in states(optimizer)] == [8]


@modes
def test_sparse_gradient_in_the_middle_of_training_is_taken_where_the_rule_takes_it(mode, gpu):
    ps, optimizer, qs, plain = pair(gpu, lambda ps, fused, **options: SGD(ps, lr=0.1, **options), mode, shapes=[(6, 2)])
    start, seen = values(qs), []
    for number, (grad,) in enumerate(helpers.gradients(qs, 5)):
        row = [grad.relu().to_sparse() if number in (2, 3) else grad]
        step(optimizer, ps, row)
        step(plain, qs, row)
        seen += readers(optimizer)
    assert seen == ["fused", "fused", "single", "single", "fused"]
    assert_close(ps, qs, start, 5)


@modes
def test_without_triton_the_next_reader_steps_and_says_why(mode, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(triton_kernel, "_loaded", {})
    qs = helpers.params(SHAPES, torch.float32)
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(in_mode(Adam(ps, lr=0.1), mode), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    (entry,) = optimizer.explain().entries
    assert entry.reader == "foreach"
    assert "need Triton, which can't be imported" in entry.reason
    assert_close(ps, qs, start, 3)
    before = here(ps)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"fused=True can't be had: .*Triton.*install it.*Leave `fused` out"):
            step(in_mode(Adam(ps, fused=True), mode), ps, rows[0])
    assert same(here(ps), before)


class Broken:
    """A kernel that can't be compiled."""

    def warmup(self, *arguments, **options):
        raise ValueError("no such instruction")


def breaking(patch, name, where=""):
    """From now on one of the kernels of sources that contain `where` can't be compiled."""
    for module in (triton_launch, device_launch):

        def load(source, real=module.load):
            functions = real(source)
            return {**functions, name: Broken()} if where in source else functions

        patch.setattr(module, "load", load)


def test_kernel_that_cannot_be_compiled_leaves_its_parameters_to_the_next_reader(gpu, monkeypatch):
    breaking(monkeypatch, "step", "bfloat16")
    qs = [*helpers.params(SHAPES, torch.float32), *helpers.params(SHAPES, torch.bfloat16)]
    ps, start, rows = moved(qs, gpu), values(qs), helpers.gradients(qs, 3)
    optimizer = run(Adam(ps, lr=0.1), ps, rows)
    run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
    assert [(e.reader, e.dtype) for e in optimizer.explain().entries] == [("fused", "float32"), ("foreach", "bfloat16")]
    assert "Triton failed to compile the kernel: ValueError: no such instruction" in str(optimizer.explain())
    assert_close(ps[:2], qs[:2], start[:2], 3)
    assert_close(ps[2:], qs[2:], start[2:], 3)


@modes
def test_kernel_that_cannot_be_compiled_moves_nothing_by_half(mode, gpu, monkeypatch):
    breaking(monkeypatch, "step", "bfloat16")
    ps = moved([*helpers.params(SHAPES, torch.float32), *helpers.params(SHAPES, torch.bfloat16)], gpu)
    before, (row,) = here(ps), helpers.gradients(ps, 1)
    optimizer = in_mode(Adam(ps, lr=0.1, fused=True), mode)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"fused=True can't be had: Triton failed to compile.*Leave `fused` out"):
            step(optimizer, ps, row)
    assert same(here(ps), before)
    assert all(not v.any() for state in states(optimizer) for v in state.values())


def test_numbers_that_the_device_cannot_have_are_calculated_here(gpu, monkeypatch):
    breaking(monkeypatch, "calculate")
    ps, optimizer, qs, plain = pair(gpu, Adam, lr=0.1)
    start, rows = values(qs), helpers.gradients(qs, 3)
    run(optimizer, ps, rows)
    run(plain, qs, rows)
    assert_fused(optimizer, "host")
    assert_close(ps, qs, start, 3)


# ## Checkpoints

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1, "amsgrad": True}


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


# ## What is compiled for a GPU that need not be there


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles the kernels of an optimizer for an H100, and gives the PTX of each by its name."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_kernel, "_loaded", {})
    monkeypatch.setitem(fused.LAUNCHES, "cpu", TritonLaunch)
    types = {"tensors": "i32", "count": "i32", "numbers": "*fp64", "found_inf": "*fp32", "grad_scale": "*fp32"}

    def ptx(source):
        for name, function in triton_kernel.load(source).items():
            if name in ("step", "calculate"):
                arguments = function.arg_names
                signature = {a: "constexpr" if a == "BLOCK" else types.get(a, "*i64") for a in arguments}
                if name == "calculate":
                    signature["tensors"] = "*i64"
                block = BLOCK if name == "step" else device_launch.NUMBERS_BLOCK
                aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(arguments) if signature[a][0] == "*"}
                made = ASTSource(function, signature, {(arguments.index("BLOCK"),): block}, aligned)
                kernel = triton.compile(made, GPUTarget("cuda", 90, 32), triton_launch.OPTIONS)
                yield name, kernel.asm["ptx"]

    return lambda source: dict(ptx(source))


def sources(rule, dtype, mode):
    """The sources of a rule at its first, second and eighth step."""
    ps = helpers.params([(2,)], dtype)
    optimizer, rows = rule.build(ps, "single"), helpers.gradients(ps, 7)
    for some in ([], rows[:1], rows[1:]):
        twin = rule.build(ps)
        twin.load_state_dict(run(optimizer, ps, some).state_dict())
        twin.param_groups[0]["fused"] = True
        yield in_mode(twin, mode).kernel_source()


def assert_compiles(ptx, mode):
    assert set(ptx) == ({"step", "calculate"} if mode == "device" else {"step"})
    assert not re.search(r"\.local|(div|sqrt|rsqrt|rcp)\.(approx|full)|\.ftz", ptx["step"])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "device"), (torch.bfloat16, "host")], ids=str)
@all_rules
def test_kernel_of_every_rule_compiles_for_a_gpu(rule, dtype, mode, compiled):
    *_, source = sources(rule, dtype, mode)
    assert_compiles(compiled(source), mode)


@modes
@pytest.mark.parametrize("name", ["adam", "radam", "sgd-momentum"])
def test_kernel_compiles_for_a_gpu(name, mode, compiled):
    for source in dict.fromkeys(sources(BY_NAME[name], torch.float32, mode)):
        assert_compiles(compiled(source), mode)


def test_kernels_that_look_up_hyper_parameters_and_the_scale_compile_for_a_gpu(compiled):
    lr, beta1, beta2, eps = (torch.tensor(0.5, dtype=dtype) for dtype in DTYPES[:4])
    optimizer = Adam(helpers.params([(2,)], torch.float32), lr=lr, betas=(beta1, beta2), eps=eps, fused=True)
    plan = optimizer._stepper._make(optimizer, Scaling(torch.zeros(()), torch.ones(())), dry=True)
    (launch,) = plan.jobs[0].launches
    assert "grad_scale)" in launch.source
    assert_compiles(compiled(launch.source), "device")


def test_adam_moves_16_bytes_at_a_time_and_contracts_nothing(compiled):
    *_, source = sources(BY_NAME["adam"], torch.float32, "host")
    text = compiled(source)["step"]
    threads = 32 * WARPS
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", text)) == 4 * BLOCK // (4 * threads)
    assert len(re.findall(r"st\.global\S*\.v4\.b32", text)) == 3 * BLOCK // (4 * threads)
    body, each = source[source.index("def update_0") : source.index("def step")], 2 * BLOCK // threads
    for instruction, formula in {
        "fma.rn.f32": "tl.fma(",
        "div.rn.f32": "tl.div_rn(",
        "sqrt.rn.f32": "tl.sqrt_rn(",
    }.items():
        assert 0 < text.count(instruction) <= body.count(formula) * each


def test_product_and_sum_are_two_instructions_on_a_gpu(compiled):
    class Separate(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.add_(grad * param)

    class Joined(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.addcmul_(grad, param)

    ps = helpers.params([(2,)], torch.float32)
    separate, joined = (compiled(rule(ps, FUSED, lr=1.0).kernel_source())["step"] for rule in (Separate, Joined))
    assert "fma.rn.f32" in joined
    assert "fma.rn" not in separate
    assert "add.rn.f32" in separate or "add.f32" in separate


# ## Distributed tensors


def test_part_of_a_distributed_tensor_that_lies_here_is_stepped_by_a_kernel(gpu):
    if not torch.distributed.is_available():
        pytest.skip("torch is without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    qs = helpers.params([(3, 4), (2, 5)], torch.float32)
    start, rows = values(qs), helpers.gradients(qs, 4)
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh(gpu.type, (2,))

        def cut(tensor):
            return DTensor.from_local(tensor.detach().to(gpu), mesh, [Shard(0)], run_check=False)

        ps = [Parameter(cut(q)) for q in helpers.copies(qs)]
        optimizer = Adam(ps, lr=0.1, fused=True)
        for number, row in enumerate(rows):
            in_mode(optimizer, "host" if number < 2 else "device")
            for p, g in zip(ps, row, strict=True):
                p.grad = cut(g)
            optimizer.step()
        run(Adam(qs, lr=0.1, **SINGLE), qs, rows)
        assert readers(optimizer) == ["fused"]
        assert [e.elements for e in optimizer.explain().entries] == [22]
        assert_close([p.to_local() for p in ps], qs, start, 4)
    finally:
        torch.distributed.destroy_process_group()
