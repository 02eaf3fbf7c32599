"""Sophia's curvature: estimated from gradients of drawn labels, averaged, and used by every reader."""

import numpy as np
import pytest
import torch

from optimizers import Sophia
from tests import helpers
from tests.helpers import same, values
from tests.rules import READERS, ULPS_PER_STEP


def steps(reader, dtype=torch.float64, **options):
    """Six steps, with an estimate of the curvature before every other one; the parameters and the optimizer."""
    ps = helpers.params(dtype=dtype)
    optimizer = Sophia(ps, lr=0.02, eps=1e-3, **options, **READERS[reader])
    rows, estimates = helpers.gradients(ps, 6), helpers.gradients(ps, 3, seed=5)
    for t, row in enumerate(rows):
        if t % 2 == 0:
            for p, g in zip(ps, estimates[t // 2], strict=True):
                p.grad = g.clone()
            optimizer.update_hessian(n_tokens=32)
        helpers.step(optimizer, ps, row)
    return ps, optimizer


@pytest.mark.parametrize("reader", READERS)
def test_steps_with_curvature_are_those_of_the_paper(reader):
    start = helpers.params()
    rows, estimates = helpers.gradients(start, 6), helpers.gradients(start, 3, seed=5)
    ps, _ = steps(reader, rho=0.1, betas=(0.8, 0.9), weight_decay=0.1)
    for i, (p, s) in enumerate(zip(ps, start, strict=True)):
        theta = s.detach().numpy().copy()
        m, h = np.zeros_like(theta), np.zeros_like(theta)
        for t, row in enumerate(rows):
            if t % 2 == 0:
                h = 0.9 * h + 0.1 * 32 * estimates[t // 2][i].numpy() ** 2
            theta = theta - 0.02 * 0.1 * theta
            m = 0.8 * m + 0.2 * row[i].numpy()
            theta = theta - 0.02 / 0.1 * np.clip(m / (h + 1e-3), -0.1, 0.1)
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_every_reader_uses_the_same_curvature(dtype):
    start = helpers.values(helpers.params(dtype=dtype))
    (single, one), (foreach, _), (fused, other) = (steps(reader, dtype) for reader in ("single", "foreach", "fused"))
    assert same(values(single), values(foreach))
    helpers.assert_within(6 * ULPS_PER_STEP, fused, single, start)
    for p, q in zip(single, fused, strict=True):
        assert same(one.state[p]["hessian"], other.state[q]["hessian"])


def test_parameter_without_gradient_keeps_its_curvature():
    ps = helpers.params()
    optimizer = Sophia(ps)
    ps[0].grad = torch.ones_like(ps[0])
    optimizer.update_hessian(n_tokens=4)
    assert torch.equal(optimizer.state[ps[0]]["hessian"], torch.full_like(ps[0], 4 * (1 - 0.95)))
    assert all(optimizer.state[p]["hessian"].count_nonzero() == 0 for p in ps[1:])
    assert all(optimizer.state[p]["step"] == 0 for p in ps)


@pytest.mark.parametrize("n_tokens", [0, -1, float("nan")])
def test_number_of_tokens_that_is_none_is_refused_before_anything_changes(n_tokens):
    ps = helpers.params()
    optimizer = Sophia(ps)
    for p in ps:
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="n_tokens"):
        optimizer.update_hessian(n_tokens)
    assert not optimizer.state


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
def test_rho_that_clips_everything_away_is_refused(rho):
    with pytest.raises(ValueError, match="Invalid rho value"):
        Sophia(helpers.params(), rho=rho)
