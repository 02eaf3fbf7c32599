"""
Ours and torch's for-loop, over whatever hypothesis thinks of: shapes with zeros and ones, layouts, dtypes, gradients
that are missing at some steps or laid out otherwise than their parameter, and several groups.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimizers import Rprop
from tests import helpers
from tests.helpers import same
from tests.rules import RULES, TWINS, UNDEMANDING

STEPS = 4

shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 17]), max_size=3).map(tuple)
layouts = st.sampled_from(["plain", "transposed", "strided", "offset", "channels_last"])
dtypes = st.sampled_from([torch.float64, torch.float32, torch.complex128])


def lay(value, layout):
    """The same values in other memory."""
    if layout == "transposed" and value.dim() >= 2:
        return value.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([value, torch.full_like(value, 77.0)], dim=-1)[..., 0]
    if layout == "offset":
        return torch.cat([value.new_full((1,), 77.0), value.reshape(-1)])[1:].view(value.shape)
    if layout == "channels_last" and value.dim() >= 2:
        return value.movedim(0, -1).contiguous().movedim(-1, 0)
    return value.clone()


@st.composite
def runs(draw, rules):
    """A rule, and parameters for it as (shape, layout, layout of gradient, dtype, steps with a gradient, group)."""
    rule = draw(st.sampled_from(rules))
    own = shapes.map(rule.shape), layouts, layouts, dtypes.filter(rule.takes)
    present, group = st.sets(st.integers(0, STEPS - 1)), st.integers(0, 2)
    return rule, draw(st.lists(st.tuples(*own, present, group), min_size=1, max_size=5))


def build(model, make, weight_decay=0.05):
    """The parameters of a model, and an optimizer with a group for each number in it."""
    ps = [
        lay(helpers.params([shape], dtype, seed=i)[0].detach(), layout).requires_grad_()
        for i, (shape, layout, _, dtype, _, _) in enumerate(model)
    ]
    groups = []
    for number in sorted({row[-1] for row in model}):
        members = [p for p, row in zip(ps, model, strict=True) if row[-1] == number]
        groups.append({"params": members, **({"lr": 0.003 * number, "weight_decay": weight_decay} if number else {})})
    return ps, make(groups)


def train(model, ps, optimizer, steps=range(STEPS)):
    rows = helpers.gradients(ps, STEPS)
    for t in steps:
        for p, g, (_, _, layout, _, present, _) in zip(ps, rows[t], model, strict=True):
            p.grad = lay(g, layout) if t in present else None
        optimizer.step()


def by_kind(rules):
    """Tests with rules of either kind, so that the few for matrices are not lost among the others."""
    kinds = {"elementwise": [r for r in rules if not r.matrices], "matrices": [r for r in rules if r.matrices]}
    kinds = {kind: members for kind, members in kinds.items() if members}
    return pytest.mark.parametrize("rules", kinds.values(), ids=kinds)


@pytest.mark.parametrize("reader", UNDEMANDING)
@by_kind(TWINS)
@given(data=st.data())
def test_any_model_trains_as_with_torchs_for_loop(reader, rules, data):
    rule, model = data.draw(runs(rules))
    # torch's Rprop has no decay; it does not look at that of a group.
    weight_decay = 0.0 if rule.cls is Rprop else 0.05
    ours, optimizer = build(model, lambda groups: rule.build(groups, reader), weight_decay)
    theirs, twin = build(model, rule.build_twin, weight_decay)
    start = helpers.values(ours)
    train(model, ours, optimizer)
    train(model, theirs, twin)
    states, twins = optimizer.state_dict()["state"], twin.state_dict()["state"]
    for i, (p, q, s) in enumerate(zip(ours, theirs, start, strict=True)):
        assert p.stride() == q.stride()
        if p.is_complex():
            # torch's SGD multiplies complex numbers where we multiply pairs.
            helpers.assert_within(4 * STEPS, [p], [q], [s])
        else:
            helpers.assert_as_torch(reader, [p], [q], [s], STEPS)
        got, want = states.get(i, {}), twins.get(i, {})
        assert list(got) == list(want)
        assert all(got[k].shape == want[k].shape and got[k].dtype == want[k].dtype for k in want)
        if "step" in want:
            assert same(got["step"], want["step"])


@pytest.mark.parametrize("reader", UNDEMANDING)
@by_kind(RULES)
@given(data=st.data())
def test_any_model_trains_as_its_parameters_do_alone(reader, rules, data):
    rule, model = data.draw(runs(rules))
    together, optimizer = build(model, lambda groups: rule.build(groups, reader))
    train(model, together, optimizer)
    for i, row in enumerate(model):
        (alone, *_), _ = build([row], lambda groups: rule.build(groups, reader))
        # The numbers of a parameter come from its place in the model.
        alone = lay(helpers.params([row[0]], row[3], seed=i)[0].detach(), row[1]).requires_grad_()
        change = {"lr": 0.003 * row[-1], "weight_decay": 0.05} if row[-1] else {}
        own = rule.build([{"params": [alone], **change}], reader)
        for t, grads in enumerate(helpers.gradients(together, STEPS)):
            alone.grad = lay(grads[i], row[2]) if t in row[4] else None
            own.step()
        assert same(together[i], alone)


@pytest.mark.parametrize("reader", UNDEMANDING)
@by_kind(RULES)
@given(data=st.data(), pause=st.integers(0, STEPS))
def test_any_model_resumes_bitwise_from_a_checkpoint_at_any_step(reader, rules, data, pause):
    rule, model = data.draw(runs(rules))
    ps, optimizer = build(model, lambda groups: rule.build(groups, reader))
    train(model, ps, optimizer, range(pause))
    resumed, fresh = build(model, lambda groups: rule.build(groups, reader))
    for p, q in zip(resumed, ps, strict=True):
        p.data.copy_(q.data)
    fresh.load_state_dict(optimizer.state_dict())
    train(model, ps, optimizer, range(pause, STEPS))
    train(model, resumed, fresh, range(pause, STEPS))
    assert same(helpers.values(ps), helpers.values(resumed))
    assert helpers.same_state(optimizer, fresh)
