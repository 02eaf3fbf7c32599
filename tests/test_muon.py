"""Muon: its iteration to all digits, orthogonal, for matrices only, and honest about why no kernel takes it."""

import copy
import itertools

import numpy as np
import pytest
import torch

from optimizers import Adam, Muon
from optimizers.muon import _polar_express
from tests import helpers, reference
from tests.rules import RULES

SHAPES = [(6, 4), (4, 9), (5, 5), (1, 3), (70, 8)]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.cls is Muon], ids=str)
def test_movement_without_the_rounding_to_bfloat16_is_that_of_the_formula_to_all_digits(rule, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
    ps = helpers.params(SHAPES)
    rows = helpers.gradients(ps, 12)
    start = helpers.values(ps)
    helpers.run(rule.build(ps), ps, rows)
    for i, (p, s) in enumerate(zip(ps, start, strict=True)):
        want = rule.reference(s.numpy(), [row[i].numpy() for row in rows])[-1]
        assert np.abs(p.detach().numpy() - want).max() <= 1e-12 * np.abs(want - s.numpy()).max()


@pytest.mark.parametrize("turns", [1, 5, 9])
def test_coefficients_of_polar_express_are_the_best_as_its_paper_derives_them(turns):
    for got, want in zip(_polar_express(turns), reference.best_quintics(turns), strict=True):
        assert got == pytest.approx(want, rel=1e-10)


def singular_values(polar_express, turns, smallest=1e-3):
    """What becomes of singular values from `smallest` to 1, in float64, so that rounding does not blur it."""
    x = torch.logspace(torch.log10(torch.tensor(smallest)).item(), 0, 500, dtype=torch.float64)
    quintic = [(3.4445, -4.775, 2.0315)] * turns
    for a, b, c in _polar_express(turns) if polar_express else quintic:
        x = a * x + b * x**3 + c * x**5
    return x


def test_polar_express_comes_closer_to_orthogonal_at_every_number_of_turns():
    for turns in range(4, 10):
        apart = [(singular_values(express, turns) - 1).abs().max() for express in (True, False)]
        assert apart[0] < apart[1]
    assert (singular_values(True, 8) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("polar_express", [False, True], ids=["quintic", "polar-express"])
def test_step_has_the_singular_vectors_of_the_momentum(shape, polar_express):
    (p,) = helpers.params([shape], torch.float32)
    (grad,) = helpers.gradients([p], 1)[0]
    optimizer = Muon([p], polar_express=polar_express, ns_steps=8)
    step = optimizer.orthogonalize(optimizer.param_groups[0], grad).float()
    u, _, v = torch.linalg.svd(grad, full_matrices=False)
    # In bfloat16, three digits: the values on the diagonal are near one, and all others near zero.
    seen = u.T @ step @ v.T
    near = 0.35 if not polar_express else 0.05
    assert (seen.diagonal() - 1).abs().max() < near
    assert (seen - torch.diag(seen.diagonal())).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
def test_what_is_no_matrix_is_refused_with_advice(shape):
    with pytest.raises(ValueError, match=r"only supports 2D parameters.*AdamW"):
        Muon(helpers.params([(3, 2), shape]))
    optimizer = Muon(helpers.params([(3, 2)]))
    with pytest.raises(ValueError, match="AdamW"):
        optimizer.add_param_group({"params": helpers.params([shape])})
    assert len(optimizer.param_groups) == 1


def test_complex_matrix_is_refused():
    with pytest.raises(ValueError, match="complex"):
        Muon(helpers.params([(3, 2)], torch.complex64))


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"differentiable": True}, "no differentiable steps"), ({"ns_coefficients": None}, "exactly 3 values")],
    ids=["differentiable", "coefficients"],
)
def test_what_it_can_not_do_is_refused_when_it_is_made(bad, words):
    with pytest.raises(ValueError, match=words):
        Muon(helpers.params(SHAPES), **bad)


def test_readers_say_why_they_do_not_take_it():
    ps = helpers.params(SHAPES)
    optimizer = helpers.run(Muon(ps), ps, helpers.gradients(ps, 1))
    (entry,) = optimizer.explain().entries
    assert entry.reader == "single"
    assert "muon.py" in entry.reason
    with pytest.raises(RuntimeError, match=r"fused=True can't be had: .*muon\.py"):
        helpers.run(Muon(ps, fused=True), ps, helpers.gradients(ps, 1))


def test_trains_beside_adamw_on_one_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Linear(12, 12), torch.nn.Linear(12, 3))
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    both = [Muon(matrices, lr=0.02, polar_express=True), Adam(others, lr=0.01)]
    x = torch.randn(64, 6)
    y = x @ torch.randn(6, 3)
    losses = []
    for _ in range(60):
        loss = (net(x) - y).square().mean()
        losses.append(loss.item())
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in both:
            optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert all(a != b for a, b in itertools.pairwise(losses))
    assert copy.deepcopy(both[0]).state_dict()["param_groups"][0]["polar_express"] is True
