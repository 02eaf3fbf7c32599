"""AdamFP16 moves float32 copies of half-precision parameters; GradScalerFP16 hands it gradients unscaled in float32."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from optimizers import SGD, Adam, WeightDecay, check_optimizer
from optimizers.adam_fp16 import AdamFP16, GradScalerFP16
from tests import helpers, reference
from tests.helpers import same, same_state
from tests.rules import READERS

halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
all_readers = pytest.mark.parametrize("reader", READERS)
to_none = pytest.mark.parametrize("set_to_none", [True, False], ids=["to-none", "to-zero"])

#: Arguments of ours, the class that does the same in float32, torch's where it can, and arguments of the formula.
_L2 = {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.1, "maximize": True}
OPTIONS = {
    "defaults": ({}, torch.optim.Adam, {}),
    "l2-maximize": (_L2, partial(torch.optim.Adam, **_L2), _L2),
    "amsgrad-decoupled": (
        {"lr": 0.02, "betas": (0.9, 0.9), "amsgrad": True, "weight_decay": WeightDecay(0.1)},
        partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.9), amsgrad=True, weight_decay=0.1),
        {"lr": 0.02, "betas": (0.9, 0.9), "amsgrad": True, "weight_decay": 0.1, "decay": reference.DECOUPLED},
    ),
    "reordered-absolute": (
        {"lr": 0.02, "optimized_update": True, "weight_decay": WeightDecay(0.01, absolute=True)},
        partial(Adam, lr=0.02, optimized_update=True, weight_decay=WeightDecay(0.01, absolute=True)),
        {"lr": 0.02, "reordered": True, "weight_decay": 0.01, "decay": reference.ABSOLUTE},
    ),
}
all_options = pytest.mark.parametrize(("ours", "theirs", "paper"), OPTIONS.values(), ids=OPTIONS)


def build(ps, reader="default", **kwargs):
    return AdamFP16(ps, **{**READERS.get(reader, {}), **kwargs})


def masters(optimizer, ps):
    return [optimizer.state[p]["fp32_copy"] for p in ps]


def widened(ps):
    return [p.detach().float().requires_grad_() for p in ps]


def assert_rounded(optimizer, ps):
    assert same(helpers.values(ps), [m.to(p.dtype) for m, p in zip(masters(optimizer, ps), ps, strict=True)])


# ## The rule


@halves
@all_readers
@all_options
def test_master_copy_moves_as_float32_adam_and_the_parameter_is_its_rounding(ours, theirs, paper, reader, dtype):
    ps = helpers.params(dtype=dtype)
    start, wide = widened(ps), widened(ps)
    optimizer, expected = build(ps, reader, **ours), theirs(wide, **READERS["single"])
    for row in helpers.gradients(ps, 20):
        helpers.step(optimizer, ps, row)
        helpers.step(expected, wide, [g.float() for g in row])
        assert_rounded(optimizer, ps)
    helpers.assert_as_torch(reader, masters(optimizer, ps), wide, start, 20)


@halves
@all_readers
@all_options
def test_master_copy_moves_as_the_papers_formula(ours, theirs, paper, reader, dtype):
    ps = helpers.params(dtype=dtype)
    start, rows = widened(ps), helpers.gradients(ps, 50)
    optimizer = helpers.run(build(ps, reader, **ours), ps, rows)
    for i, (master, s) in enumerate(zip(masters(optimizer, ps), start, strict=True)):
        theta = s.detach().double().numpy()
        want = reference.adam(theta, [row[i].double().numpy() for row in rows], **paper)[-1]
        rounding = len(rows) * torch.finfo(torch.float32).eps / 2 * np.abs(want).max()
        assert np.abs(master.double().numpy() - want).max() <= 5e-6 * np.abs(want - theta).max() + rounding


@halves
@all_readers
def test_steps_that_half_precision_rounds_away_add_up(reader, dtype):
    ps, qs = ([torch.ones(3, dtype=dtype, requires_grad=True)] for _ in range(2))
    ours, plain = build(ps, reader, lr=1e-4), Adam(qs, lr=1e-4, **READERS[reader])
    for _ in range(200):
        helpers.step(ours, ps, [torch.ones(3, dtype=dtype)])
        helpers.step(plain, qs, [torch.ones(3, dtype=dtype)])
    assert torch.equal(qs[0], torch.ones(3, dtype=dtype))
    torch.testing.assert_close(ps[0], torch.full((3,), 1 - 200 * 1e-4).to(dtype), rtol=0, atol=0)


@halves
@all_readers
def test_weight_decay_is_that_of_the_master_copy(reader, dtype):
    ps = [torch.ones(3, dtype=dtype, requires_grad=True)]
    optimizer = build(ps, reader, lr=1e-3, weight_decay=WeightDecay(0.1))
    helpers.run(optimizer, ps, [[torch.zeros(3, dtype=dtype)]] * 300)
    torch.testing.assert_close(masters(optimizer, ps)[0], torch.full((3,), (1 - 1e-4) ** 300), rtol=1e-5, atol=0)
    assert_rounded(optimizer, ps)


@given(
    start=st.floats(-100, 100, width=16),
    grads=st.lists(st.floats(-(2.0**15), 2.0**15, width=16), min_size=1, max_size=8),
    lr=st.floats(1e-6, 0.5),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_any_finite_gradients_move_as_in_float32(start, grads, lr, weight_decay):
    for reader in READERS:
        ps = [torch.tensor([start], dtype=torch.float16).requires_grad_()]
        wide = widened(ps)
        optimizer = build(ps, reader, lr=lr, weight_decay=weight_decay)
        expected = Adam(wide, lr=lr, weight_decay=weight_decay, **READERS[reader])
        for grad in grads:
            helpers.step(optimizer, ps, [torch.tensor([grad], dtype=torch.float16)])
            helpers.step(expected, wide, [torch.tensor([grad])])
            assert same(masters(optimizer, ps), helpers.values(wide))
            assert_rounded(optimizer, ps)


@all_readers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_wide_parameter_moves_bitwise_as_by_adam_and_its_copy_has_memory_of_its_own(reader, dtype):
    ps = helpers.params(dtype=dtype)
    qs = helpers.copies(ps)
    optimizer, adam = build(ps, reader, weight_decay=0.1), Adam(qs, weight_decay=0.1, **READERS[reader])
    for row in helpers.gradients(ps, 5):
        helpers.step(optimizer, ps, row)
        helpers.step(adam, qs, row)
        assert same(helpers.values(ps), helpers.values(qs))
        assert same(helpers.values(ps), masters(optimizer, ps))
    assert all(p.data_ptr() != m.data_ptr() for p, m in zip(ps, masters(optimizer, ps), strict=True))


@halves
@all_readers
def test_parameter_stays_the_same_object_in_the_same_memory_and_all_state_is_float32(reader, dtype):
    ps = helpers.params(dtype=dtype)
    places = [p.data_ptr() for p in ps]
    optimizer = helpers.run(build(ps, reader, amsgrad=True), ps, helpers.gradients(ps, 3))
    assert [p.data_ptr() for p in ps] == places
    assert all(p is q for p, q in zip(optimizer.param_groups[0]["params"], ps, strict=True))
    for p in ps:
        state = optimizer.state[p]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "fp32_copy"}
        assert {v.dtype for v in state.values()} == {torch.float32}
        assert not any(v.requires_grad for v in state.values())


def test_one_kernel_steps_each_dtype():
    ps = helpers.params(dtype=torch.float16) + helpers.params(dtype=torch.bfloat16)
    optimizer = helpers.run(build(ps, "fused"), ps, helpers.gradients(ps, 2))
    assert [(e.reader, e.launches, e.reason) for e in optimizer.explain().entries] == [("fused", 1, "")] * 2


def test_checks_of_every_rule_pass():
    assert len(check_optimizer(AdamFP16, lr=0.05, weight_decay=WeightDecay(0.1)).lines) == 7 * 3 * 5


def test_gradients_flow_through_differentiable_steps_back_to_the_first_parameter():
    def steps(theta, *grads):
        theta = theta.clone()
        optimizer = build([theta], differentiable=True, weight_decay=0.1)
        for grad in grads:
            theta.grad = grad
            optimizer.step()
        return theta, optimizer.state[theta]["fp32_copy"]

    inputs = [torch.linspace(0.1, 1, 5, dtype=torch.float64).add(i).requires_grad_() for i in range(4)]
    assert torch.autograd.gradcheck(steps, inputs)


def test_sparse_gradient_is_refused():
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    p.grad = torch.ones(3, dtype=torch.float16).to_sparse()
    with pytest.raises(RuntimeError, match="AdamFP16 does not support sparse gradients"):
        build([p]).step()


# ## Checkpoints


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@halves
@all_readers
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_checkpoint_through_a_file_resumes_bitwise(taken, reader, dtype):
    ps = helpers.params(dtype=dtype)
    rows = [[None if (i, t) == (1, 1) else g for i, g in enumerate(r)] for t, r in enumerate(helpers.gradients(ps, 9))]
    optimizer = helpers.run(build(ps, reader, lr=1e-4, weight_decay=0.1), ps, rows[:taken])
    resumed = helpers.copies(ps)
    fresh = build(resumed, reader)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same_state(optimizer, fresh)
    helpers.run(optimizer, ps, rows[taken:])
    helpers.run(fresh, resumed, rows[taken:])
    assert same(helpers.values(ps), helpers.values(resumed))
    assert same_state(optimizer, fresh)


@halves
@all_readers
@pytest.mark.parametrize("amsgrad", [False, True])
def test_checkpoint_of_torchs_adam_goes_on_in_float32(amsgrad, reader, dtype):
    ps = helpers.params(dtype=dtype)
    rows = helpers.gradients(ps, 6)
    # An eps that float16 can hold, for torch's own steps.
    adam = helpers.run(torch.optim.Adam(ps, lr=0.02, eps=1e-3, amsgrad=amsgrad), ps, rows[:3])
    saved = through_a_file(adam.state_dict())
    wide = widened(ps)
    optimizer, expected = build(ps, reader), Adam(wide, **READERS[reader])
    optimizer.load_state_dict(saved)
    for state in saved["state"].values():
        state.update({k: v.float() for k, v in state.items()})
    expected.load_state_dict(saved)
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(expected, wide, [[g.float() for g in row] for row in rows[3:]])
    assert same(masters(optimizer, ps), helpers.values(wide))
    assert_rounded(optimizer, ps)
    assert {v.dtype for p in ps for v in optimizer.state[p].values()} == {torch.float32}


def test_what_a_user_notes_in_the_state_is_loaded_as_it_is():
    ps = helpers.params(dtype=torch.float16)
    optimizer = helpers.run(build(ps), ps, helpers.gradients(ps, 1))
    optimizer.state[ps[0]]["seen"] = torch.tensor([1, 2, 3])
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert same(optimizer.state[ps[0]]["seen"], torch.tensor([1, 2, 3]))


# ## The scaler


def scaler(**kwargs):
    return GradScalerFP16("cpu", **{"init_scale": 2.0**16, "growth_interval": 2, **kwargs})


def backward(amp, ps, grads):
    """Scaled gradients, in the dtype of each parameter, as a backward pass leaves them there."""
    amp.scale(sum((p.float() * g).sum() for p, g in zip(ps, grads, strict=True))).backward()


def tiny(ps, steps):
    """Gradients that float16 would round to 0."""
    return [[g.float() * 1e-9 for g in row] for row in helpers.gradients(ps, steps)]


def as_unscaled(g, scale, dtype):
    """What a gradient is after its way through a scaled backward pass."""
    return (g * scale).to(dtype).float() / scale


@halves
@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_gradients_that_float16_can_not_hold_are_what_the_step_uses(reader, dtype):
    ps = helpers.params(dtype=dtype)
    start, wide = widened(ps), widened(ps)
    rows = tiny(ps, 8)
    assert not any(g.half().any() for row in rows for g in row)
    amp = scaler(growth_interval=100)
    optimizer, expected = build(ps, reader, eps=1e-12), Adam(wide, eps=1e-12, **READERS["single"])
    for row in rows:
        optimizer.zero_grad()
        backward(amp, ps, row)
        assert all(p.grad.dtype == dtype for p in ps)
        amp.step(optimizer)
        amp.update()
        helpers.step(expected, wide, [as_unscaled(g, 2.0**16, dtype) for g in row])
    assert optimizer.state[ps[0]]["step"] == 8
    assert all((m - s).abs().max() > 1e-4 for m, s in zip(masters(optimizer, ps), start, strict=True))
    helpers.assert_as_torch(reader, masters(optimizer, ps), wide, start, 8)
    assert_rounded(optimizer, ps)


@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_gradients_unscaled_by_hand_are_in_their_place_clipped_and_cleared(reader):
    ps = helpers.params(dtype=torch.float16)
    start, wide = widened(ps), widened(ps)
    amp = scaler(growth_interval=100)
    optimizer, expected = build(ps, reader, eps=1e-12), Adam(wide, eps=1e-12, **READERS["single"])
    for row in tiny(ps, 4):
        optimizer.zero_grad()
        backward(amp, ps, row)
        amp.unscale_(optimizer)
        exact = [as_unscaled(g, 2.0**16, torch.float16) for g in row]
        assert same([p.grad for p in ps], exact)
        nn.utils.clip_grad_norm_(ps, 1e-9)
        amp.step(optimizer)
        amp.update()
        for p, g in zip(wide, exact, strict=True):
            p.grad = g
        nn.utils.clip_grad_norm_(wide, 1e-9)
        expected.step()
    helpers.assert_as_torch(reader, masters(optimizer, ps), wide, start, 4)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ps)


@pytest.mark.parametrize("by_hand", [False, True], ids=["in-step", "by-hand"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e6], ids=["inf", "nan", "overflow"])
@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_step_with_an_overflow_changes_nothing_and_the_scale_halves_and_grows_back(reader, bad, by_hand):
    ps = helpers.params(dtype=torch.float16)
    optimizer, amp = build(ps, reader), scaler(init_scale=1024.0)
    rows = [[g.float() * 1e-3 for g in row] for row in helpers.gradients(ps, 4)]
    rows[1][2] = torch.full_like(rows[1][2], bad)
    scales = []
    for t, row in enumerate(rows):
        before, state = helpers.values(ps), through_a_file(optimizer.state_dict())
        optimizer.zero_grad()
        backward(amp, ps, row)
        if by_hand:
            amp.unscale_(optimizer)
        amp.step(optimizer)
        amp.update()
        scales.append(amp.get_scale())
        assert same(helpers.values(ps), before) == (t == 1)
        if t == 1:
            now = optimizer.state_dict()["state"]
            assert all(same(now[i][k], v) for i, kept in state["state"].items() for k, v in kept.items())
    assert scales == [1024.0, 512.0, 512.0, 1024.0]
    assert all(optimizer.state[p]["step"] == 3 for p in ps)


@to_none
@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_nothing_of_a_skipped_step_is_in_the_next_one(reader, set_to_none):
    runs = []
    for overflows in (False, True):
        ps = helpers.params(dtype=torch.float16)
        optimizer = build(ps, reader)
        rows = [[g.float() * 1e-3 for g in row] for row in helpers.gradients(ps, 3)]
        for t, row in enumerate(rows):
            if overflows and t == 1:
                amp = scaler()
                backward(amp, ps, [torch.full_like(g, 1e9) for g in row])
                amp.step(optimizer)
                optimizer.zero_grad(set_to_none)
            amp = scaler(init_scale=1024.0)
            backward(amp, ps, row)
            amp.step(optimizer)
            optimizer.zero_grad(set_to_none)
        runs.append((helpers.values(ps), optimizer))
    assert same(runs[0][0], runs[1][0])
    assert same_state(runs[0][1], runs[1][1])


@to_none
def test_gradients_of_several_backward_passes_add_up(set_to_none):
    ps = helpers.params(dtype=torch.float16)
    optimizer, amp = build(ps), scaler(init_scale=8.0, growth_interval=100)
    for row in helpers.gradients(ps, 3):
        optimizer.zero_grad(set_to_none)
        for _ in range(2):
            # Eighths of whole numbers are exact in all of this.
            backward(amp, ps, [g.float().round() / 8 for g in row])
        amp.unscale_(optimizer)
        assert all(torch.equal(p.grad, g.float().round() / 4) for p, g in zip(ps, row, strict=True))
        amp.step(optimizer)
        amp.update()


@all_readers
def test_optimizers_of_all_kinds_share_the_scaler(reader):
    half, wide, twin = (
        helpers.params(dtype=torch.float16),
        helpers.params(dtype=torch.float32),
        helpers.params(dtype=torch.float32),
    )
    theirs = helpers.copies(wide)
    amp, plain = scaler(init_scale=256.0), torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    group = [build(half, reader), SGD(wide, lr=0.1, **READERS[reader]), torch.optim.SGD(twin, lr=0.1)]
    alone = SGD(theirs, lr=0.1, **READERS[reader])
    for t, row in enumerate(helpers.gradients(wide, 4)):
        before = helpers.values(wide)
        for optimizer in (*group, alone):
            optimizer.zero_grad()
        # What is too much for float16 holds up one optimizer only.
        backward(amp, half + wide + twin, [g * (1e6 if t == 2 else 1e-3) for g in row] + row + row)
        backward(plain, theirs, row)
        for optimizer in group:
            amp.step(optimizer)
        plain.step(alone)
        amp.update()
        plain.update(None if t != 2 else plain.get_scale() / 2)
        assert not same(helpers.values(wide), before)
        assert same(helpers.values(wide), helpers.values(theirs))
        assert same(helpers.values(wide), helpers.values(twin))
    assert group[0].state[half[0]]["step"] == 3


@pytest.mark.parametrize("cls", [torch.optim.Adam, Adam])
def test_float16_gradients_of_other_optimizers_are_refused_as_torch_does(cls):
    ps = helpers.params(dtype=torch.float16)
    optimizer, amp = cls(ps), scaler()
    backward(amp, ps, ps)
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        amp.step(optimizer)


class Tagged(torch.Tensor):
    """A tensor whose memory may not be where it says."""


def test_gradient_that_is_no_plain_tensor_is_refused_and_not_misread():
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    optimizer, amp = build([p]), scaler()
    amp.scale(torch.ones(()))
    p.grad = torch.ones(3, dtype=torch.float16).as_subclass(Tagged)
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        amp.step(optimizer)
    assert p.grad.dtype == torch.float16


def test_gradients_are_unscaled_once_only():
    ps = helpers.params(dtype=torch.float16)
    optimizer, amp = build(ps), scaler()
    backward(amp, ps, tiny(ps, 1)[0])
    amp.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="has already been called"):
        amp.unscale_(optimizer)


def test_parameters_without_gradient_are_left_out():
    ps = helpers.params(dtype=torch.float16)
    start = helpers.values(ps)
    optimizer, amp = build(ps), scaler()
    backward(amp, ps[:1], tiny(ps, 1)[0][:1])
    amp.step(optimizer)
    assert [bool(optimizer.state.get(p)) for p in ps] == [True, False, False, False]
    assert same(helpers.values(ps[1:]), start[1:])


def test_scaler_that_is_off_leaves_gradients_as_they_are():
    ps = helpers.params(dtype=torch.float16)
    optimizer, amp = build(ps), scaler(enabled=False)
    backward(amp, ps, [torch.ones_like(p) for p in ps])
    amp.unscale_(optimizer)
    amp.step(optimizer)
    amp.update()
    assert all(p.grad.dtype == torch.float16 for p in ps)
    assert optimizer.state[ps[0]]["step"] == 1


def test_torchs_own_scaler_serves_the_fused_reader():
    ps, qs = helpers.params(dtype=torch.float16), helpers.params(dtype=torch.float16)
    for params, amp in ((ps, scaler()), (qs, torch.amp.GradScaler("cpu", init_scale=2.0**16))):
        optimizer = build(params, "fused", eps=1e-12)
        for row in tiny(params, 3):
            optimizer.zero_grad()
            backward(amp, params, row)
            amp.step(optimizer)
            amp.update(2.0**16)
    assert same(helpers.values(ps), helpers.values(qs))


@halves
def test_network_in_half_precision_trains_to_the_loss_of_one_in_float32(dtype):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :1] * x[:, 1:2]
    losses = {}
    for used, cls in ((torch.float32, Adam), (dtype, AdamFP16)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1)).to(used)
        optimizer, amp = cls(model.parameters(), lr=1e-2), scaler(init_scale=1024.0, growth_interval=100)
        for _ in range(100):
            optimizer.zero_grad()
            loss = (model(x.to(used)).float() - y).square().mean()
            amp.scale(loss).backward()
            amp.step(optimizer)
            amp.update()
        losses[used] = loss.item()
    assert losses[dtype] < 0.05 * y.square().mean()
    assert abs(losses[dtype] - losses[torch.float32]) < 2e-3
