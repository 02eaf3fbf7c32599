"""Parameters, gradients and comparisons for the tests."""

import torch
from torch import Tensor

from tests.rules import EXACT, ULPS_PER_STEP

SHAPES = [(4, 3), (5,), (), (2, 1, 3)]


def params(shapes=SHAPES, dtype=torch.float64, seed=1):
    """Leaf tensors with values of about 1, the same for the same seed in any dtype."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_complex:
        drawn = [torch.randn(*s, 2, generator=generator, dtype=torch.float64) for s in shapes]
        drawn = [torch.view_as_complex(d) for d in drawn]
    else:
        drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [d.to(dtype).requires_grad_() for d in drawn]


def params_for(rule, shapes=SHAPES, dtype=torch.float64, seed=1):
    """The same, in the shapes that a rule takes."""
    return params([rule.shape(s) for s in shapes], dtype, seed)


def gradients(like, steps, seed=2):
    """For each step a gradient for each of `like`, of sizes between 0.01 and 10."""
    scales = (1.0, 0.01, 10.0, 0.3)
    result = []
    for step in range(steps):
        drawn = params([p.shape for p in like], torch.float64, seed * 1000 + step)
        imaginary = params([p.shape for p in like], torch.float64, seed * 1000 + 500 + step)
        row = []
        for i, (p, real, imag) in enumerate(zip(like, drawn, imaginary, strict=True)):
            value = torch.complex(real.detach(), imag.detach()) if p.is_complex() else real.detach()
            row.append((value * scales[(step + i) % 4]).to(p.dtype))
        result.append(row)
    return result


def step(optimizer, ps, grads):
    """One step with these gradients; None is a missing one."""
    for p, g in zip(ps, grads, strict=True):
        p.grad = None if g is None else g.clone()
    return optimizer.step()


def run(optimizer, ps, rows):
    for grads in rows:
        step(optimizer, ps, grads)
    return optimizer


def copies(ps):
    """Leaves with the same values and strides, and memory of their own."""
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in ps]


def values(ps):
    return [p.detach().clone() for p in ps]


def bits(tensor: Tensor):
    """The bytes of the elements: tells -0 from 0, and finds NaN equal to itself."""
    tensor = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def same(a, b):
    """Are two tensors, or lists of them, the same, bit for bit?"""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def same_state(a, b):
    """Are the states of two optimizers the same, bit for bit?"""
    a, b = a.state_dict()["state"], b.state_dict()["state"]
    return a.keys() == b.keys() and all(
        a[i].keys() == b[i].keys() and all(same(a[i][k], b[i][k]) for k in a[i]) for i in a
    )


def assert_as_torch(reader, got, want, start, steps):
    """Bitwise where the reader's operations are those of torch's for-loop, else within its bound."""
    if reader in EXACT:
        assert same(values(got), values(want))
    else:
        assert_within(ULPS_PER_STEP * steps, got, want, start)


def assert_within(ulps, got, want, start):
    """Do the movements differ by at most so many ULP of the largest number on the way?"""
    for g, w, s in zip(got, want, start, strict=True):
        assert g.dtype == w.dtype
        assert g.shape == w.shape
        if g.numel() == 0:
            continue
        g, w, s = g.detach(), w.detach(), s.detach()
        largest = max(s.abs().max().item(), w.abs().max().item())
        difference = ((g - s) - (w - s)).abs().max().item()
        assert difference <= ulps * torch.finfo(g.dtype).eps * largest
