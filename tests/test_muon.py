"""Muon: as torch's, orthogonal, for matrices only, and honest about why no kernel takes it."""

import copy
import io
import itertools

import pytest
import torch

from optimizers import Adam, Muon, WeightDecay, check_optimizer
from tests import helpers
from tests.helpers import same

SHAPES = [(6, 4), (4, 9), (5, 5), (1, 3), (70, 8)]
OPTIONS = [
    {},
    {"nesterov": False, "lr": 0.02},
    {"adjust_lr_fn": "original", "momentum": 0.5, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
    {"ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3, "ns_steps": 12},
]
has_twin = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@has_twin
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_moves_bitwise_as_torchs(options, dtype):
    ours, theirs = helpers.params(SHAPES, dtype), helpers.params(SHAPES, dtype)
    rows = helpers.gradients(ours, 20)
    mine = helpers.run(Muon(ours, **options), ours, rows)
    twin = helpers.run(torch.optim.Muon(theirs, **options), theirs, rows)
    assert same(helpers.values(ours), helpers.values(theirs))
    for p, q in zip(ours, theirs, strict=True):
        assert same(mine.state[p]["momentum_buffer"], twin.state[q]["momentum_buffer"])


@has_twin
@pytest.mark.parametrize("direction", ["torch-to-ours", "ours-to-torch"])
def test_checkpoint_crosses_over_and_training_goes_on(direction):
    ps, uninterrupted = helpers.params(SHAPES), helpers.params(SHAPES)
    rows = helpers.gradients(ps, 10)
    helpers.run(torch.optim.Muon(uninterrupted, weight_decay=0.3), uninterrupted, rows)
    before, after = [torch.optim.Muon, Muon][:: 1 if direction == "torch-to-ours" else -1]
    optimizer = helpers.run(before(ps, weight_decay=0.3), ps, rows[:5])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    ps = helpers.copies(ps)
    resumed = after(ps)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    helpers.run(resumed, ps, rows[5:])
    assert same(helpers.values(ps), helpers.values(uninterrupted))


@has_twin
@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"momentum": -0.1}, {"weight_decay": -0.1}, {"adjust_lr_fn": "none"}], ids=str
)
def test_bad_argument_is_refused_in_torchs_words(bad):
    with pytest.raises(ValueError) as want:
        torch.optim.Muon(helpers.params(SHAPES), **bad)
    with pytest.raises(ValueError) as got:
        Muon(helpers.params(SHAPES), **bad)
    assert str(got.value) == str(want.value)


def singular_values(polar_express, turns, smallest=1e-3):
    """What becomes of singular values from `smallest` to 1, in float32, so that rounding does not blur it."""
    from optimizers.muon import _polar_express

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


def test_passes_the_check_for_matrices():
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    for options in ({}, {"polar_express": True, "weight_decay": WeightDecay(0.1, absolute=True)}):
        assert check_optimizer(Muon, shapes=((4, 3), (5, 5), (2, 7)), dtypes=dtypes, **options).lines


def test_half_precision_momentum_is_not_overwritten_by_the_iteration():
    ps = helpers.params(SHAPES, torch.bfloat16)
    rows = helpers.gradients(ps, 3)
    optimizer = helpers.run(Muon(ps, nesterov=False), ps, rows)
    for p, *grads in zip(ps, *rows, strict=True):
        momentum = torch.zeros_like(p, requires_grad=False)
        for grad in grads:
            momentum = momentum.float().lerp(grad.float(), 1 - 0.95).bfloat16()
        assert same(optimizer.state[p]["momentum_buffer"], momentum)


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
