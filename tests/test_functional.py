"""Gradients flow through differentiable steps."""

import pytest
import torch

from optimizers import SGD, Adam, RMSprop
from tests import helpers
from tests.rules import RULES

differentiable_rules = pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.matrices], ids=str)


@differentiable_rules
def test_gradcheck_passes_through_three_steps(rule):
    def steps(theta, *grads):
        theta = theta.clone()
        optimizer = rule.build([theta], foreach=None, fused=None, differentiable=True)
        for grad in grads:
            theta.grad = grad
            optimizer.step()
        return theta, *(v for v in optimizer.state[theta].values() if torch.is_tensor(v) and v.requires_grad)

    generator = torch.Generator().manual_seed(3)
    inputs = [torch.rand(5, dtype=torch.float64, generator=generator).add(0.1).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(steps, inputs)


@differentiable_rules
def test_differentiable_steps_move_as_plain_ones(rule):
    ps, qs = helpers.params(), helpers.params()
    rows = helpers.gradients(ps, 6)
    helpers.run(rule.build(ps), ps, rows)
    thetas = [q.detach().clone() for q in qs]
    optimizer = rule.build(thetas, foreach=None, fused=None, differentiable=True)
    helpers.run(optimizer, thetas, rows)
    assert optimizer.explain().entries[0].reader == "functional"
    for p, theta in zip(ps, thetas, strict=True):
        torch.testing.assert_close(theta.detach(), p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [Adam, SGD, RMSprop])
def test_learning_rate_gets_a_gradient(cls):
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    theta = torch.ones(3, dtype=torch.float64)
    optimizer = cls([theta], lr=lr, differentiable=True)
    theta.grad = torch.full((3,), 0.5, dtype=torch.float64)
    optimizer.step()
    theta.sum().backward()
    moved = (1 - theta.detach()).sum() / lr.detach()
    torch.testing.assert_close(lr.grad, -moved)
