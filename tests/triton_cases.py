"""What the tests of kernels for GPUs share."""

import contextlib

import pytest
import torch
from torch import Tensor

from optimizers import GenericAdaptiveOptimizer
from optimizers.engines import fused
from optimizers.engines.c_launch import CLaunch
from tests import helpers
from tests.helpers import assert_within, same, values
from tests.rules import CLASSES, READERS, RULES, ULPS_PER_STEP

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


def with_gaps(rows):
    """One parameter has its first gradient late, the other one misses one."""
    rows[0][1] = rows[3][0] = None
    return rows


class Counting(GenericAdaptiveOptimizer):
    """Rules whose numbers depend on the count."""

    def init_state(self, state, group, param):
        state["step"] = 0


def tell(optimizer, gpu, found_inf=0.0, grad_scale=None):
    """What GradScaler tells an optimizer before its step."""
    optimizer.found_inf = torch.tensor(found_inf, device=gpu)
    optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale, device=gpu)


def reports(optimizer):
    return [(e.reader, e.tensors, len(e.groups)) for e in optimizer.explain().entries]


OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "weight_decay": 0.1, "amsgrad": True}
