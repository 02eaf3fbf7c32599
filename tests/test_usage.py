"""
What people do while they train: they clip, accumulate, freeze, average and scale, and each time our class moves as
torch's does. What they do to the groups is in `test_usage_groups.py`, and to the state in `test_usage_state.py`.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import swa_utils

from optimizers import Adam, AMSGrad
from tests import helpers
from tests.helpers import same, same_state
from tests.rules import BY_NAME, CLASS_TWINS, CLASSES, EXACT, pairs

classes_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES), ids=str)
twins_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS), ids=str)


@pytest.fixture(autouse=True, scope="module")
def _waste_no_time():
    """The threads of a busy machine wait for each other, for as long as the work takes or longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(rule, reader, dtype=torch.float64):
    """The same parameters for our optimizer and for torch's: `(ps, optimizer), (qs, twin), start`."""
    ps, qs = helpers.params_for(rule, dtype=dtype), helpers.params_for(rule, dtype=dtype)
    return (ps, rule.build(ps, reader)), (qs, rule.build_twin(qs)), helpers.values(ps)


def backward(ps, grads, factor=1.0):
    """A loss whose gradients do not depend on the parameters, so that a last digit stays one."""
    loss = sum((p * g).sum() for p, g in zip(ps, grads, strict=True) if p.requires_grad)
    (loss * factor).backward()


# ## A network


def network():
    """The same numbers at each call; one weight is made of two parameters."""
    torch.manual_seed(3)
    # Without a bias, whose gradient before a normalisation is nothing but rounding.
    first = weight_norm(nn.Linear(4, 6, bias=False))
    return nn.Sequential(first, nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    return x, 3 * x[:, :2].sin()


def loss_of(net, x, y):
    return nn.functional.mse_loss(net(x), y)


def _steps_plainly(net, optimizer):
    optimizer.zero_grad()
    loss_of(net, *batch()).backward()
    optimizer.step()


def _clips_the_norm(net, optimizer):
    optimizer.zero_grad()
    loss_of(net, *batch()).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    optimizer.step()


def _clips_the_values(net, optimizer):
    optimizer.zero_grad()
    loss_of(net, *batch()).backward()
    nn.utils.clip_grad_value_(net.parameters(), 0.05)
    optimizer.step()


def _accumulates_two_backwards(net, optimizer):
    optimizer.zero_grad()
    for x, y in zip(*(part.split(6) for part in batch()), strict=True):
        (loss_of(net, x, y) / 2).backward()
    optimizer.step()


def _keeps_its_gradients(net, optimizer):
    optimizer.zero_grad(set_to_none=False)
    loss_of(net, *batch()).backward()
    optimizer.step()


def _forgets_to_zero(net, optimizer):
    loss_of(net, *batch()).backward()
    optimizer.step()


def _steps_by_a_closure(net, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, *batch())
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0


def _takes_gradients_that_have_a_graph(net, optimizer):
    ps = list(net.parameters())
    for p, grad in zip(ps, torch.autograd.grad(loss_of(net, *batch()), ps, create_graph=True), strict=True):
        p.grad = grad
    optimizer.step()


def _steps_twice_on_one_gradient(net, optimizer):
    optimizer.zero_grad()
    loss_of(net, *batch()).backward()
    optimizer.step()
    optimizer.step()


HABITS = [
    *(_clips_the_norm, _clips_the_values, _accumulates_two_backwards, _keeps_its_gradients, _forgets_to_zero),
    *(_steps_by_a_closure, _takes_gradients_that_have_a_graph, _steps_twice_on_one_gradient),
]


def assert_nets_agree(rule, reader, ours, theirs):
    """Bitwise where the reader is exact; else gradients, which follow the parameters, let a difference grow."""
    got, want = rule.parameters(ours), rule.parameters(theirs)
    start = helpers.values(rule.parameters(network()))
    assert not any(same(p, s) for p, s in zip(want, start, strict=True))
    if reader in EXACT:
        assert same(helpers.values(got), helpers.values(want))
    else:
        helpers.assert_within(1e5, got, want, start)


@twins_by_all_readers
@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.__name__.strip("_"))
def test_habit_moves_a_network_as_with_torchs_class(rule, reader, habit):
    ours, theirs = network(), network()
    optimizer, twin = rule.build(rule.parameters(ours), reader), rule.build_twin(rule.parameters(theirs))
    for _ in range(6):
        habit(ours, optimizer)
        habit(theirs, twin)
    assert_nets_agree(rule, reader, ours, theirs)


@classes_by_all_readers
def test_step_in_the_middle_of_backward_equals_one_after_it(rule, reader):
    inside, after = network(), network()
    for p in rule.parameters(inside):
        own = rule.build([p], reader)
        p.register_post_accumulate_grad_hook(lambda p, own=own: own.step() or own.zero_grad())
    optimizer = rule.build(rule.parameters(after), reader)
    for _ in range(4):
        loss_of(inside, *batch()).backward()
        _steps_plainly(after, optimizer)
    assert all(p.grad is None for p in rule.parameters(inside))
    assert same(helpers.values(inside.parameters()), helpers.values(after.parameters()))


@twins_by_all_readers
def test_averaged_weights_are_those_of_torchs_class(rule, reader):
    """`AveragedModel`, `SWALR` and `update_bn`, as in torch's recipe."""
    nets, averages = [network(), network()], []
    makers = [lambda ps: rule.build(ps, reader), rule.build_twin]
    for net, make in zip(nets, makers, strict=True):
        optimizer = make(rule.parameters(net))
        average = swa_utils.AveragedModel(net)
        schedule = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
        for _ in range(6):
            _steps_plainly(net, optimizer)
            average.update_parameters(net)
            schedule.step()
        swa_utils.update_bn([batch()[0]], average)
        averages.append(average)
    got, want = (list(a.module.state_dict().values()) for a in averages)
    assert not same(want, list(nets[1].state_dict().values()))
    if reader in EXACT:
        assert same(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@twins_by_all_readers
@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameter_that_is_frozen_and_thawed_moves_and_counts_as_in_torch(rule, reader, set_to_none):
    (ps, optimizer), (qs, twin), start = pair(rule, reader)
    for t, row in enumerate(helpers.gradients(ps, 9)):
        for stepping, params in ((optimizer, ps), (twin, qs)):
            params[1].requires_grad_(not 3 <= t < 6)
            stepping.zero_grad(set_to_none)
            backward(params, row)
            stepping.step()
    helpers.assert_as_torch(reader, ps, qs, start, 9)
    for p, q in zip(ps, qs, strict=True):
        assert same(optimizer.state[p].get("step", torch.zeros(())), twin.state[q].get("step", torch.zeros(())))


# ## Precision


@classes_by_all_readers
def test_step_inside_autocast_equals_one_outside(rule, reader):
    inside, outside = helpers.params_for(rule, dtype=torch.float32), helpers.params_for(rule, dtype=torch.float32)
    rows = helpers.gradients(inside, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer = helpers.run(rule.build(inside, reader), inside, rows)
    other = helpers.run(rule.build(outside, reader), outside, rows)
    assert same(helpers.values(inside), helpers.values(outside))
    assert same_state(optimizer, other)


#: More rules that divide by a root, each by its own.
DIVIDING = [BY_NAME[name] for name in ("adam-amsgrad", "adam-optimized", "rmsprop-centered")]


@pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES + DIVIDING), ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_stays_finite_with_tiny_gradients(rule, reader, dtype):
    limits = torch.finfo(dtype)
    normal, least = limits.smallest_normal, limits.smallest_normal * limits.eps
    sizes = torch.tensor([0.0, least, normal / 4, normal, 16 * normal, 1e-6]).view(rule.shape((6,)))
    ps = [torch.linspace(-1, 1, 6).view_as(sizes).to(dtype).requires_grad_() for _ in range(2)]
    optimizer = rule.build(ps, reader)
    for t in range(30):
        # The second parameter's gradient changes its sign at each step.
        helpers.step(optimizer, ps, [sizes.to(dtype), (sizes * (-1) ** t).to(dtype)])
    assert all(torch.isfinite(p).all() for p in ps)


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)


@twins_by_all_readers
def test_clipping_of_unscaled_gradients_moves_as_torchs_and_an_overflow_is_left_out(rule, reader):
    (ps, optimizer), (qs, twin), start = pair(rule, reader, torch.float32)
    amp, other = scaler(), scaler()
    for t, row in enumerate(helpers.gradients(ps, 6)):
        for params, stepping, amplifier in ((ps, optimizer, amp), (qs, twin, other)):
            before = helpers.values(params)
            stepping.zero_grad()
            backward(params, row, amplifier.scale(torch.tensor(float("inf") if t == 3 else 1.0)))
            amplifier.unscale_(stepping)
            nn.utils.clip_grad_norm_(params, 0.5)
            amplifier.step(stepping)
            amplifier.update()
            assert same(helpers.values(params), before) == (t == 3)
    assert amp.get_scale() == other.get_scale() != 1024.0
    helpers.assert_as_torch(reader, ps, qs, start, 5)


@twins_by_all_readers
def test_one_of_two_optimizers_on_a_scaler_overflows_and_only_it_leaves_the_step_out(rule, reader):
    ps, qs = helpers.params_for(rule, dtype=torch.float32), helpers.params_for(rule, dtype=torch.float32)
    start, amp, other = helpers.values(ps), scaler(), scaler()
    ours = [rule.build(ps[:2], reader), rule.build(ps[2:], reader)]
    theirs = [rule.build_twin(qs[:2]), rule.build_twin(qs[2:])]
    for t, row in enumerate(helpers.gradients(ps, 5)):
        before = helpers.values(ps)
        row[0][1, 1] *= float("inf") if t == 2 else 1.0
        for params, both, amplifier in ((ps, ours, amp), (qs, theirs, other)):
            for optimizer in both:
                optimizer.zero_grad()
            backward(params, row, amplifier.scale(torch.ones(())))
            for optimizer in both:
                amplifier.step(optimizer)
            amplifier.update()
        assert same(helpers.values(ps[:2]), before[:2]) == (t == 2)
        assert not same(helpers.values(ps[2:]), before[2:])
    helpers.assert_as_torch(reader, ps, qs, start, 5)
    for optimizer, steps in zip(ours, (4, 5), strict=True):
        assert all(s["step"].item() == steps for s in optimizer.state.values() if "step" in s)


def test_amsgrad_is_two_hooks_and_gives_the_bits_of_adam_with_the_option():
    assert {name for name in vars(AMSGrad) if not name.startswith("__")} == {"init_state", "get_mv"}
    paths = []
    for cls in (AMSGrad, partial(Adam, amsgrad=True)):
        ps = helpers.params(dtype=torch.float32)
        optimizer = helpers.run(cls(ps, lr=0.1), ps, helpers.gradients(ps, 6))
        paths.append((helpers.values(ps), optimizer.state_dict()["state"]))
    (one, state), (two, other) = paths
    assert helpers.same(one, two)
    assert all(helpers.same(state[i][k], other[i][k]) for i in other for k in other[i])
