"""
What holds for every rule with every reader: it is its paper's formula, it treats each parameter alone, and nothing
that a checkpoint, a copy, a layout or a group does can change a result.
"""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedules

from optimizers import SGD, Adam, AdamFP16, AdamW, GenericAdaptiveOptimizer, Rprop, WeightDecay
from tests import helpers, rules
from tests.helpers import same, same_state
from tests.rules import BY_NAME, CLASS_TWINS, CLASSES, READERS, RULES, UNDEMANDING, pairs

all_classes = pytest.mark.parametrize("rule", CLASSES, ids=str)
all_readers = pytest.mark.parametrize("reader", READERS)
rules_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(RULES), ids=str)
classes_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES), ids=str)
rules_by_undemanding_readers = pytest.mark.parametrize(("rule", "reader"), pairs(RULES, UNDEMANDING), ids=str)
classes_by_undemanding_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES, UNDEMANDING), ids=str)
undemanding_readers = pytest.mark.parametrize("reader", UNDEMANDING)
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])

#: Largest distance from the float64 reference after 50 steps, relative to the largest movement of the tensor.
REFERENCE_BOUND = {torch.float64: 1e-12, torch.float32: 5e-6}


# ## The formula


@rules_by_all_readers
@pytest.mark.parametrize("dtype", REFERENCE_BOUND, ids=["float64", "float32"])
def test_movement_is_that_of_the_papers_formula(rule, reader, dtype):
    ps = helpers.params_for(rule, dtype=dtype)
    rows = helpers.gradients(ps, 50)
    start = helpers.values(ps)
    helpers.run(rule.build(ps, reader), ps, rows)
    for i, (p, s) in enumerate(zip(ps, start, strict=True)):
        theta = s.double().numpy()
        path = rule.reference(theta, [row[i].double().numpy() for row in rows])
        want = path[-1] - theta
        got = (p.detach().double() - s.double()).numpy()
        assert np.abs(want).max() > 1e-3
        # The parameter itself is rounded at each step, by half an ULP. So is the factor of a decoupled decay, always
        # to the same side, so these errors may all add up.
        rounding = len(rows) * torch.finfo(dtype).eps / 2 * np.abs(path).max()
        assert np.abs(got - want).max() <= max(REFERENCE_BOUND[dtype], rule.precision) * np.abs(want).max() + rounding


@rules_by_all_readers
def test_every_step_of_the_path_is_that_of_the_papers_formula(rule, reader):
    ps = helpers.params_for(rule, [(6,)])
    rows = helpers.gradients(ps, 12)
    theta = ps[0].detach().numpy().copy()
    optimizer = rule.build(ps, reader)
    for row, want in zip(rows, rule.reference(theta, [r[0].numpy() for r in rows]), strict=True):
        helpers.step(optimizer, ps, row)
        moved = np.abs(want - theta).max()
        assert np.abs(ps[0].detach().numpy() - want).max() <= max(1e-12, rule.precision) * moved


# ## A step and its surroundings


@rules_by_all_readers
def test_gradient_is_left_as_it_was(rule, reader):
    ps = helpers.params_for(rule)
    optimizer = rule.build(ps, reader)
    for row in helpers.gradients(ps, 3):
        for p, g in zip(ps, row, strict=True):
            p.grad = g.clone()
        given = [p.grad for p in ps]
        versions = [g._version for g in given]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(ps, given, strict=True))
        assert same(given, row)
        assert [g._version for g in given] == versions


@rules_by_all_readers
def test_missing_gradient_keeps_its_own_step_count(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 9)
    alone = helpers.copies(ps)
    # Parameter i has a gradient where its turn has come, so that no two counts are the same.
    masked = [[g if step % (i + 1) == i else None for i, g in enumerate(row)] for step, row in enumerate(rows)]
    optimizer = helpers.run(rule.build(ps, reader), ps, masked)
    for i, (p, q) in enumerate(zip(ps, alone, strict=True)):
        seen = [row[i] for row in masked if row[i] is not None]
        helpers.run(rule.build([q], reader), [q], [[g] for g in seen])
        assert same(p, q)
        if "step" in optimizer.state[p]:
            assert optimizer.state[p]["step"].item() == len(seen)


@rules_by_all_readers
def test_parameter_without_gradient_does_not_move_and_has_no_state(rule, reader):
    ps = helpers.params_for(rule)
    start = helpers.values(ps)
    rows = [[g if i != 1 else None for i, g in enumerate(row)] for row in helpers.gradients(ps, 3)]
    optimizer = helpers.run(rule.build(ps, reader), ps, rows)
    assert same(ps[1], start[1])
    assert ps[1] not in optimizer.state
    assert not any(same(p, s) for i, (p, s) in enumerate(zip(ps, start, strict=True)) if i != 1)


@classes_by_all_readers
def test_step_with_no_gradient_at_all_does_nothing(rule, reader):
    ps = helpers.params_for(rule)
    start = helpers.values(ps)
    optimizer = rule.build(ps, reader)
    optimizer.step()
    assert same(helpers.values(ps), start)
    assert not optimizer.state


@rules_by_all_readers
def test_result_does_not_depend_on_which_parameters_step_with_it(rule, reader):
    shapes = [(17,), (3, 3), (40, 5), (), (1,)]
    together = helpers.params_for(rule, shapes, torch.float32)
    alone = helpers.copies(together)
    rows = helpers.gradients(together, 6)
    helpers.run(rule.build(together, reader), together, rows)
    for i in (1, 0, 4, 3, 2):
        helpers.run(rule.build([alone[i]], reader), [alone[i]], [[row[i]] for row in rows])
    assert same(helpers.values(together), helpers.values(alone))


@rules_by_all_readers
def test_result_does_not_depend_on_the_order_of_the_parameters(rule, reader):
    forward = helpers.params_for(rule, dtype=torch.float32)
    backward = helpers.copies(forward)[::-1]
    rows = helpers.gradients(forward, 6)
    helpers.run(rule.build(forward, reader), forward, rows)
    helpers.run(rule.build(backward, reader), backward, [row[::-1] for row in rows])
    assert same(helpers.values(forward), helpers.values(backward[::-1]))


@classes_by_all_readers
def test_result_does_not_depend_on_the_number_of_threads(rule, reader):
    shapes = [(40_001,), (3,), (90, 500)]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ps = helpers.params_for(rule, shapes, torch.float32)
            helpers.run(rule.build(ps, reader), ps, helpers.gradients(ps, 2))
            results.append(helpers.values(ps))
    finally:
        torch.set_num_threads(threads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@rules_by_all_readers
def test_parameters_of_several_dtypes_step_together_as_alone(rule, reader):
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
    together = [helpers.params_for(rule, [(3, 2)], dtype)[0] for dtype in dtypes if rule.takes(dtype)]
    alone = helpers.copies(together)
    rows = helpers.gradients(together, 4)
    helpers.run(rule.build(together, reader), together, rows)
    for i, p in enumerate(alone):
        helpers.run(rule.build([p], reader), [p], [[row[i]] for row in rows])
    assert same(helpers.values(together), helpers.values(alone))


@rules_by_all_readers
def test_lr_zero_moves_nothing(rule, reader):
    if rule.cls is Rprop:
        pytest.skip("lr is only where the steps of Rprop start; see its page")
    ps = helpers.params_for(rule)
    start = helpers.values(ps)
    helpers.run(rule.build(ps, reader, lr=0.0), ps, helpers.gradients(ps, 3))
    assert same(helpers.values(ps), start)


@classes_by_all_readers
@pytest.mark.parametrize(
    "decay",
    [WeightDecay(0.5, weight_decouple=False), WeightDecay(0.5), WeightDecay(0.5, absolute=True)],
    ids=["l2", "decoupled", "absolute"],
)
def test_lr_zero_moves_nothing_in_any_decay_mode(rule, reader, decay):
    if rule.cls is AdamW and not decay.weight_decouple:
        pytest.skip("AdamW decouples its decay")
    if rule.cls is Rprop:
        pytest.skip("Rprop has no decay")
    ps = helpers.params_for(rule)
    start = helpers.values(ps)
    helpers.run(rule.build(ps, reader, lr=0.0, weight_decay=decay), ps, helpers.gradients(ps, 3))
    assert same(helpers.values(ps), start)


@rules_by_all_readers
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-element"])
def test_tensor_lr_equals_the_same_number(rule, reader, shape):
    if reader == "foreach" and issubclass(rule.cls, Adam):
        pytest.skip("torch refuses a tensor lr for Adam with foreach=True, and so do we")
    number, tensor = helpers.params_for(rule), helpers.params_for(rule)
    rows = helpers.gradients(number, 5)
    lr = torch.full(shape, 0.015, dtype=torch.float64)
    helpers.run(rule.build(number, reader, lr=0.015), number, rows)
    optimizer = helpers.run(rule.build(tensor, reader, lr=lr), tensor, rows)
    assert same(helpers.values(number), helpers.values(tensor))
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.shape == shape
    assert lr.item() == 0.015


@classes_by_all_readers
def test_tensor_lr_written_in_place_takes_effect_at_the_next_step(rule, reader):
    if reader == "foreach" and issubclass(rule.cls, Adam):
        pytest.skip("torch refuses a tensor lr for Adam with foreach=True, and so do we")
    number, tensor = helpers.params_for(rule), helpers.params_for(rule)
    rows = helpers.gradients(number, 4)
    lr = torch.tensor(0.01, dtype=torch.float64)
    ours, theirs = rule.build(tensor, reader, lr=lr), rule.build(number, reader, lr=0.01)
    for rate, row in zip((0.01, 0.02, 0.0, 0.5), rows, strict=True):
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        helpers.step(ours, tensor, row)
        helpers.step(theirs, number, row)
    assert same(helpers.values(number), helpers.values(tensor))


@classes_by_all_readers
def test_closure_runs_once_with_grad_enabled_and_its_loss_is_returned(rule, reader):
    ps = helpers.params_for(rule)
    plain = helpers.copies(ps)
    optimizer = rule.build(ps, reader)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in ps)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(sum((p**2).sum().item() for p in plain))
    helpers.step(rule.build(plain, reader), plain, [2 * p.detach() for p in plain])
    assert same(helpers.values(ps), helpers.values(plain))
    assert optimizer.step() is None


@classes_by_all_readers
def test_step_leaves_grad_mode_and_requires_grad_as_they_were(rule, reader):
    ps = helpers.params_for(rule)
    optimizer = rule.build(ps, reader)
    for row in helpers.gradients(ps, 2):
        helpers.step(optimizer, ps, row)
        assert torch.is_grad_enabled()
        assert all(p.requires_grad and p.is_leaf and p.grad_fn is None for p in ps)


@rules_by_all_readers
def test_backward_through_values_that_a_step_has_overwritten_is_an_error(rule, reader):
    ps = helpers.params_for(rule, [(3,)])
    optimizer = rule.build(ps, reader)
    loss = (ps[0] ** 3).sum()
    ps[0].grad = torch.ones_like(ps[0])
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ## Groups


@rules_by_all_readers
def test_groups_with_their_own_hyper_parameters_equal_separate_optimizers(rule, reader):
    together = helpers.params_for(rule)
    apart = helpers.copies(together)
    rows = helpers.gradients(together, 6)
    changes = [{"lr": 0.003}, {"lr": 0.2}, {"maximize": not rule.kwargs.get("maximize", False)}, {"weight_decay": 0.3}]
    if rule.cls is Rprop:
        changes[-1] = {"etas": (0.1, 1.1)}
    groups = [{"params": [p], **change} for p, change in zip(together, changes, strict=True)]
    helpers.run(rule.build(groups, reader), together, rows)
    for i, (p, change) in enumerate(zip(apart, changes, strict=True)):
        own = dict(change)
        if isinstance(rule.kwargs.get("weight_decay"), WeightDecay) and "weight_decay" in own:
            mode = rule.kwargs["weight_decay"]
            own["weight_decay"] = WeightDecay(own["weight_decay"], mode.weight_decouple, mode.absolute)
        helpers.run(rule.build([p], reader, **own), [p], [[row[i]] for row in rows])
    assert same(helpers.values(together), helpers.values(apart))


@rules_by_all_readers
def test_hyper_parameters_may_change_between_steps(rule, reader):
    ps = helpers.params_for(rule)
    fixed = helpers.copies(ps)
    rows = helpers.gradients(ps, 4)
    changing = rule.build(ps, reader)
    constant = rule.build(fixed, reader)
    helpers.run(changing, ps, rows[:2])
    helpers.run(constant, fixed, rows[:2])
    changing.param_groups[0]["lr"] *= 3
    fresh = rule.build(fixed, reader, lr=changing.param_groups[0]["lr"])
    saved = constant.state_dict()
    saved["param_groups"][0]["lr"] = changing.param_groups[0]["lr"]
    fresh.load_state_dict(saved)
    helpers.run(changing, ps, rows[2:])
    helpers.run(fresh, fixed, rows[2:])
    assert same(helpers.values(ps), helpers.values(fixed))


@rules_by_all_readers
def test_group_added_later_starts_its_own_count(rule, reader):
    ps = helpers.params_for(rule)
    late = helpers.params_for(rule, [(4, 3), (5,)], seed=7)
    alone = helpers.copies(late)
    rows = helpers.gradients(ps + late, 7)
    optimizer = rule.build(ps, reader)
    helpers.run(optimizer, ps, [row[: len(ps)] for row in rows[:3]])
    optimizer.add_param_group({"params": late, "lr": 0.005})
    helpers.run(optimizer, ps + late, rows[3:])
    helpers.run(rule.build(alone, reader, lr=0.005), alone, [row[len(ps) :] for row in rows[3:]])
    assert same(helpers.values(late), helpers.values(alone))
    undisturbed = helpers.params_for(rule)
    helpers.run(rule.build(undisturbed, reader), undisturbed, [row[: len(ps)] for row in rows])
    assert same(helpers.values(ps), helpers.values(undisturbed))


@all_readers
@pytest.mark.parametrize("mode", [WeightDecay(0.1), WeightDecay(0.1, False), WeightDecay(0.1, absolute=True)], ids=str)
def test_weight_decay_object_in_a_group_equals_one_in_the_constructor(mode, reader):
    in_group, in_constructor = helpers.params(), helpers.params()
    rows = helpers.gradients(in_group, 4)
    rule = BY_NAME["adam-betas-eps"]
    optimizer = rule.build([{"params": in_group, "weight_decay": mode}], reader)
    helpers.run(optimizer, in_group, rows)
    helpers.run(rule.build(in_constructor, reader, weight_decay=mode), in_constructor, rows)
    assert same(helpers.values(in_group), helpers.values(in_constructor))
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


# ## Shapes and layouts


@rules_by_all_readers
def test_empty_and_single_element_parameters_step(rule, reader):
    # The others show that an empty tensor between them disturbs nothing.
    shapes = [rule.shape(s) for s in [(3,), (0,), (3, 0, 2), (), (2, 2), (1,), (0, 0), (1, 1)]]
    ps = helpers.params(shapes)
    rows = helpers.gradients(ps, 4)
    start = helpers.values(ps)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows)
    for i, (p, shape) in enumerate(zip(ps, shapes, strict=True)):
        assert p.shape == shape
        assert all(v.shape in (shape, ()) for v in optimizer.state.get(p, {}).values())
        if p.numel():
            theta = start[i].numpy()
            want = rule.reference(theta, [row[i].numpy() for row in rows])[-1]
            assert np.abs(p.detach().numpy() - want).max() <= max(1e-12, rule.precision) * np.abs(want - theta).max()


def _transposed(value):
    return value.mT.contiguous().mT


def _channels_last(value):
    return value.movedim(1, -1).contiguous().movedim(-1, 1)


def _strided(value):
    return torch.stack([value, torch.full_like(value, 77.0)], dim=-1)[..., 0]


def _offset(value):
    return torch.cat([value.new_full((1,), 77.0), value.reshape(-1)])[1:].view(value.shape)


def _sliced_columns(value):
    return torch.cat([value, torch.full_like(value, 77.0)], dim=-1)[..., : value.shape[-1]]


def _contiguous(value):
    return value.contiguous()


LAYOUTS = [_contiguous, _transposed, _channels_last, _strided, _offset, _sliced_columns]


@rules_by_undemanding_readers
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__.strip("_"))
def test_result_does_not_depend_on_strides(rule, reader, layout):
    plain = helpers.params_for(rule, [(2, 3, 4, 5)], torch.float32)
    start = helpers.values(plain)
    # One parameter for each layout of the gradient.
    laid = [layout(plain[0].detach().clone()).requires_grad_() for _ in LAYOUTS]
    strides = laid[0].stride()
    optimizer, other = rule.build(plain, reader), rule.build(laid, reader)
    for row in helpers.gradients(plain, 3):
        helpers.step(optimizer, plain, row)
        for p, grad_layout in zip(laid, LAYOUTS, strict=True):
            p.grad = grad_layout(row[0].clone())
        other.step()
        assert all(same(p.grad, row[0]) for p in laid)
    for p in laid:
        assert p.stride() == strides
        helpers.assert_as_torch(reader, [p], plain, start, 3)


@rules_by_all_readers
def test_dense_parameter_with_a_gradient_of_its_own_layout_moves_bitwise_as_a_contiguous_one(rule, reader):
    plain = helpers.params_for(rule, [(2, 3, 4, 5)], torch.float32)
    layouts = [_transposed, _channels_last, _offset]
    laid = [layout(plain[0].detach().clone()).requires_grad_() for layout in layouts]
    optimizer, other = rule.build(plain, reader), rule.build(laid, reader)
    for row in helpers.gradients(plain, 3):
        helpers.step(optimizer, plain, row)
        for p, layout in zip(laid, layouts, strict=True):
            p.grad = layout(row[0].clone())
        other.step()
    assert all(same(plain[0], p) for p in laid)


@rules_by_undemanding_readers
def test_memory_between_the_elements_of_a_strided_parameter_is_not_written(rule, reader):
    memory = torch.arange(24, dtype=torch.float64).view(4, 6)
    before = memory.clone()
    p = memory[1:3, ::2].requires_grad_()
    helpers.run(rule.build([p], reader), [p], helpers.gradients([p], 3))
    outside = torch.ones_like(memory, dtype=torch.bool)
    outside[1:3, ::2] = False
    assert same(memory.detach()[outside], before[outside])
    assert not same(p, before[1:3, ::2])


@rules_by_all_readers
def test_memory_beside_a_parameter_is_not_written(rule, reader):
    memory = torch.arange(64, dtype=torch.float32)
    before = memory.clone()
    p = memory[5:24].view(rule.shape((19,))).requires_grad_()
    helpers.run(rule.build([p], reader), [p], helpers.gradients([p], 3))
    assert same(memory.detach()[:5], before[:5])
    assert same(memory.detach()[24:], before[24:])


@rules_by_undemanding_readers
def test_expanded_gradient_is_read_as_its_values(rule, reader):
    expanded, plain = helpers.params_for(rule, [(4, 3)]), helpers.params_for(rule, [(4, 3)])
    start = helpers.values(plain)
    ours, other = rule.build(expanded, reader), rule.build(plain, reader)
    for row in helpers.gradients([torch.empty(3, dtype=torch.float64)], 3):
        expanded[0].grad = row[0].expand(4, 3)
        plain[0].grad = row[0].expand(4, 3).contiguous()
        ours.step()
        other.step()
    helpers.assert_as_torch(reader, expanded, plain, start, 3)


@classes_by_undemanding_readers
def test_layout_of_a_gradient_may_change_from_step_to_step(rule, reader):
    ps, plain = helpers.params_for(rule, [(2, 3, 4, 5), (3, 4)]), helpers.params_for(rule, [(2, 3, 4, 5), (3, 4)])
    start = helpers.values(plain)
    ours, other = rule.build(ps, reader), rule.build(plain, reader)
    for row, layout in zip(helpers.gradients(ps, 6), LAYOUTS, strict=True):
        helpers.step(other, plain, row)
        ps[0].grad, ps[1].grad = layout(row[0].clone()), row[1].clone()
        ours.step()
    helpers.assert_as_torch(reader, ps, plain, start, 6)


@classes_by_all_readers
def test_parameter_whose_data_was_swapped_is_found_at_its_new_place(rule, reader):
    ps = helpers.params_for(rule, [(4, 3), (5,)])
    still = helpers.copies(ps)
    rows = helpers.gradients(ps, 4)
    ours, other = rule.build(ps, reader), rule.build(still, reader)
    helpers.run(ours, ps, rows[:2])
    old = [p.data for p in ps]
    kept = helpers.values(ps)
    for p in ps:
        p.data = p.data.clone()
    helpers.run(ours, ps, rows[2:])
    helpers.run(other, still, rows)
    assert same(helpers.values(ps), helpers.values(still))
    assert same(old, kept)


@pytest.mark.parametrize(("rule", "reader"), pairs(rule for rule in RULES if rule.takes(torch.complex64)), ids=str)
def test_complex_parameter_is_two_real_ones(rule, reader):
    complex_ = helpers.params([(3, 2), ()], torch.complex64) + helpers.params([(5,), ()], torch.complex128)
    real = []
    for p in complex_:
        real.append(torch.view_as_real(p.detach()).clone().requires_grad_())
    rows = helpers.gradients(complex_, 6)
    optimizer = helpers.run(rule.build(complex_, reader), complex_, rows)
    helpers.run(rule.build(real, reader), real, [[torch.view_as_real(g).clone() for g in row] for row in rows])
    assert same([torch.view_as_real(p.detach()) for p in complex_], helpers.values(real))
    for p in complex_:
        assert all(
            v.dtype == p.dtype for name, v in optimizer.state.get(p, {}).items() if name not in rule.cls.scalar_state
        )


@pytest.mark.parametrize(
    ("rule", "reader"), pairs((rule for rule in CLASSES if rule.takes(torch.complex128)), UNDEMANDING), ids=str
)
def test_conjugated_gradient_is_read_as_its_values(rule, reader):
    lazy, plain = helpers.params([(3, 2)], torch.complex128), helpers.params([(3, 2)], torch.complex128)
    start = helpers.values(plain)
    ours, other = rule.build(lazy, reader), rule.build(plain, reader)
    for row in helpers.gradients(plain, 3):
        lazy[0].grad = row[0].conj()
        plain[0].grad = row[0].conj().resolve_conj()
        ours.step()
        other.step()
    helpers.assert_as_torch(reader, lazy, plain, start, 3)


# ## Half precision


@halves
@rules_by_all_readers
def test_half_precision_is_computed_in_float32_and_rounded_once_a_step(rule, reader, dtype):
    if rule.cls is AdamFP16:
        pytest.skip("its state is in float32; see test_adam_fp16")
    ps = helpers.params_for(rule, dtype=dtype)
    exact = [p.detach().float().requires_grad_() for p in ps]
    ours, wide = rule.build(ps, reader), rule.build(exact, reader)
    for row in helpers.gradients(ps, 8):
        helpers.step(ours, ps, row)
        helpers.step(wide, exact, [g.float() for g in row])
        for p in exact:
            for tensor in (
                p.data,
                *(v for name, v in wide.state.get(p, {}).items() if name not in rule.cls.scalar_state),
            ):
                tensor.copy_(tensor.to(dtype))
    assert all(p.dtype == dtype for p in ps)
    assert same([p.detach().float() for p in ps], helpers.values(exact))
    for p, q in zip(ps, exact, strict=True):
        for name, value in ours.state.get(p, {}).items():
            if name not in rule.cls.scalar_state:
                assert value.dtype == dtype
                assert same(value.float(), wide.state[q][name])


@rules_by_all_readers
def test_half_precision_stays_finite_with_zero_gradients(rule, reader):
    ps = helpers.params_for(rule, dtype=torch.float16) + helpers.params_for(rule, dtype=torch.bfloat16)
    zeros = [torch.zeros_like(p) for p in ps]
    helpers.run(rule.build(ps, reader), ps, [zeros] * 3)
    assert all(torch.isfinite(p).all() for p in ps)


# ## Checkpoints and copies


def _through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@rules_by_all_readers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=["float32", "bfloat16", "c64"])
def test_checkpoint_through_a_file_resumes_bitwise(rule, reader, dtype):
    if not rule.takes(dtype):
        pytest.skip("it takes no complex numbers")
    ps = helpers.params_for(rule, dtype=dtype)
    rows = [[None if (i, t) == (1, 1) else g for i, g in enumerate(r)] for t, r in enumerate(helpers.gradients(ps, 8))]
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:4])
    resumed = helpers.copies(ps)
    fresh = rule.build(resumed, reader)
    fresh.load_state_dict(_through_a_file(optimizer.state_dict()))
    assert same_state(optimizer, fresh)
    helpers.run(optimizer, ps, rows[4:])
    helpers.run(fresh, resumed, rows[4:])
    assert same(helpers.values(ps), helpers.values(resumed))
    assert same_state(optimizer, fresh)


@classes_by_all_readers
def test_checkpoint_given_directly_resumes_bitwise_and_apart_from_the_original(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:3])
    resumed = helpers.copies(ps)
    fresh = rule.build(resumed, reader)
    fresh.load_state_dict(optimizer.state_dict())
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(fresh, resumed, rows[3:])
    assert same(helpers.values(ps), helpers.values(resumed))
    assert same_state(optimizer, fresh)


@rules_by_all_readers
def test_checkpoint_before_the_first_step_resumes_bitwise(rule, reader):
    ps = helpers.params_for(rule)
    resumed = helpers.copies(ps)
    rows = helpers.gradients(ps, 3)
    optimizer, fresh = rule.build(ps, reader), rule.build(resumed, reader)
    fresh.load_state_dict(_through_a_file(optimizer.state_dict()))
    helpers.run(optimizer, ps, rows)
    helpers.run(fresh, resumed, rows)
    assert same(helpers.values(ps), helpers.values(resumed))


@rules_by_all_readers
def test_loading_takes_the_hyper_parameters_of_the_checkpoint(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:3])
    resumed = helpers.copies(ps)
    other = rule.cls(resumed, lr=0.9, **READERS[reader])
    other.load_state_dict(_through_a_file(optimizer.state_dict()))
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(other, resumed, rows[3:])
    assert same(helpers.values(ps), helpers.values(resumed))


@classes_by_all_readers
def test_loaded_state_shares_no_memory_with_the_checkpoint(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 4)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:2])
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    helpers.run(optimizer, ps, rows[2:])
    for i, state in kept["state"].items():
        assert all(same(saved["state"][i][name], value) for name, value in state.items())


@classes_by_all_readers
def test_scalars_of_the_state_are_torchs_float32_tensors_inside_and_outside(rule, reader):
    ps = helpers.params_for(rule)
    optimizer = helpers.run(rule.build(ps, reader), ps, helpers.gradients(ps, 3))
    for p in ps:
        count = optimizer.state[p].get("step")
        if count is not None:
            assert (count.dtype, count.shape, count.device.type, count.item()) == (torch.float32, (), "cpu", 3)
    counts = [s["step"] for s in optimizer.state_dict()["state"].values() if "step" in s]
    assert [c.item() for c in counts] == [3] * len(counts)


@classes_by_all_readers
def test_step_count_written_from_outside_is_the_one_that_counts(rule, reader):
    ps = helpers.params_for(rule)
    optimizer = helpers.run(rule.build(ps, reader), ps, helpers.gradients(ps, 1))
    if "step" not in optimizer.state[ps[0]]:
        pytest.skip("this rule does not count")
    other = helpers.copies(ps)
    fresh = rule.build(other, reader)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = torch.tensor(50.0)
    fresh.load_state_dict(saved)
    for p in ps:
        optimizer.state[p]["step"] = torch.tensor(50.0)
    rows = helpers.gradients(ps, 2, seed=5)
    helpers.run(optimizer, ps, rows)
    helpers.run(fresh, other, rows)
    assert same(helpers.values(ps), helpers.values(other))
    assert all(optimizer.state[p]["step"].item() == 52 for p in ps)


@halves
@rules_by_all_readers
def test_float32_state_of_half_precision_parameters_stays_float32(rule, reader, dtype):
    ps = helpers.params_for(rule, dtype=dtype)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:2])
    saved = optimizer.state_dict()
    if not saved["state"]:
        pytest.skip("this rule has no state")
    saved = copy.deepcopy(saved)
    for state in saved["state"].values():
        # A third has digits that float16 and bfloat16 lack.
        state.update({k: v.float() * (1 + 2**-13 / 3) for k, v in state.items() if k != "step"})
    optimizer.load_state_dict(_through_a_file(saved))
    exact = [p.detach().float().requires_grad_() for p in ps]
    wide = rule.build(exact, reader)
    wide.load_state_dict(saved)
    for i, state in saved["state"].items():
        assert all(same(optimizer.state_dict()["state"][i][name], value) for name, value in state.items())
    for row in rows[2:]:
        helpers.step(optimizer, ps, row)
        helpers.step(wide, exact, [g.float() for g in row])
        for p in exact:
            p.data.copy_(p.data.to(dtype))
    assert same([p.detach().float() for p in ps], helpers.values(exact))
    assert same_state(optimizer, wide)


@rules_by_all_readers
def test_deepcopy_continues_bitwise_and_apart_from_the_original(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:3])
    twin = copy.deepcopy(optimizer)
    copied = twin.param_groups[0]["params"]
    kept = helpers.values(copied)
    helpers.run(optimizer, ps, rows[3:])
    assert same(helpers.values(copied), kept)
    helpers.run(twin, copied, rows[3:])
    assert same(helpers.values(ps), helpers.values(copied))
    assert same_state(optimizer, twin)


@rules_by_all_readers
def test_pickle_continues_bitwise(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:3])
    twin = pickle.loads(pickle.dumps(optimizer))
    copied = twin.param_groups[0]["params"]
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(twin, copied, rows[3:])
    assert same(helpers.values(ps), helpers.values(copied))
    assert same_state(optimizer, twin)


class Warmup(Adam):
    """A user's subclass: one hook, and an attribute of its own."""

    def __init__(self, params, warmup, **kwargs):
        self.warmup = warmup
        self.notes = ["kept"]
        super().__init__(params, **kwargs)

    def get_lr(self, state, group):
        return group["lr"] * min(1.0, state["step"] / self.warmup)


@all_readers
@pytest.mark.parametrize("carry", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_public_attributes_of_a_users_subclass_survive_copies(reader, carry):
    ps = helpers.params()
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(Warmup(ps, warmup=5, **READERS[reader]), ps, rows[:3])
    twin = carry(optimizer)
    assert twin.warmup == 5
    assert twin.notes == ["kept"]
    assert twin.notes is not optimizer.notes
    copied = twin.param_groups[0]["params"]
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(twin, copied, rows[3:])
    assert same(helpers.values(ps), helpers.values(copied))


@all_readers
def test_hook_of_a_users_subclass_acts_in_every_reader(reader):
    ps, plain = helpers.params([(3,)]), helpers.params([(3,)])
    row = helpers.gradients(ps, 1)[0]
    helpers.step(Warmup(ps, warmup=4, lr=0.1, **READERS[reader]), ps, row)
    helpers.step(Adam(plain, lr=0.025, **READERS[reader]), plain, row)
    assert same(helpers.values(ps), helpers.values(plain))


class CountsItself(SGD):
    """As labml's pages have it."""

    def init_state(self, state, group, param):
        state["step"] = 0

    def step_param(self, state, group, grad, param):
        state["step"] += 1
        param.add_(grad, alpha=-group["lr"] / state["step"])


@all_readers
def test_rule_that_counts_by_itself_counts_once(reader):
    ps = helpers.params([(3,)])
    start = helpers.values(ps)
    rows = helpers.gradients(ps, 3)
    optimizer = helpers.run(CountsItself(ps, lr=0.1, **READERS[reader]), ps, rows)
    want = start[0] - 0.1 * (rows[0][0] + rows[1][0] / 2 + rows[2][0] / 3)
    torch.testing.assert_close(ps[0].detach(), want, rtol=1e-14, atol=1e-15)
    assert optimizer.state[ps[0]]["step"].item() == 3


class KeepsALog(SGD):
    """State that is neither a number nor a tensor of the parameter's shape."""

    def init_state(self, state, group, param):
        state["step"] = 0
        state["kind"] = "kept"

    def step_param(self, state, group, grad, param):
        super().step_param(state, group, grad, param)
        state["last"] = "odd" if state["step"] % 2 else "even"


@undemanding_readers
def test_state_that_is_no_tensor_is_kept_stepped_and_saved(reader):
    ps, plain = helpers.params(), helpers.params()
    rows = helpers.gradients(ps, 3)
    optimizer = helpers.run(KeepsALog(ps, lr=0.1, **READERS.get(reader, {})), ps, rows)
    helpers.run(SGD(plain, lr=0.1, **READERS.get(reader, {})), plain, rows)
    assert same(helpers.values(ps), helpers.values(plain))
    saved = _through_a_file(optimizer.state_dict())["state"]
    assert [(s["kind"], s["last"]) for s in saved.values()] == [("kept", "odd")] * len(ps)


def test_rule_without_a_step_says_what_to_override():
    class Empty(GenericAdaptiveOptimizer):
        pass

    ps = helpers.params()
    with pytest.raises(NotImplementedError, match="Empty must override step_param"):
        helpers.step(Empty(ps, {}, lr=0.1), ps, helpers.gradients(ps, 1)[0])


def test_adamw_refuses_l2_decay_and_says_what_to_take():
    with pytest.raises(ValueError, match="Take Adam for L2"):
        AdamW(helpers.params(), weight_decay=WeightDecay(0.1, weight_decouple=False))


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, {"beta1": 0.9, "beta2": 0.9}], ids=str)
def test_betas_that_are_no_pair_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be a pair"):
        Adam([{"params": helpers.params(), "betas": betas}])


@pytest.mark.parametrize("name", ["etas", "step_sizes"])
@pytest.mark.parametrize("value", [(1.2,), 1.2, None], ids=str)
def test_numbers_of_rprop_that_are_no_pair_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a pair of numbers"):
        Rprop(helpers.params(), **{name: value})


@all_classes
@pytest.mark.parametrize(
    "key", ["lr", "betas", "eps", "weight_decay", "momentum", "alpha", "rho", "etas", "lambd", "warmup"]
)
def test_none_is_refused_where_a_number_is_needed(rule, key):
    if key not in inspect.signature(rule.cls).parameters:
        pytest.skip("not an argument of this class")
    with pytest.raises((ValueError, TypeError)):
        rule.cls(helpers.params_for(rule), **{key: None})
    with pytest.raises((ValueError, TypeError)):
        rule.cls([{"params": helpers.params_for(rule), key: None}])


@all_readers
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "1-element"])
def test_tensor_betas_equal_the_same_numbers(reader, shape):
    if reader == "foreach":
        pytest.skip("torch refuses tensor betas with foreach=True, and so do we")
    number, tensor = helpers.params(), helpers.params()
    rows = helpers.gradients(number, 5)
    betas = tuple(torch.full(shape, beta, dtype=torch.float64) for beta in (0.8, 0.95))
    helpers.run(Adam(number, betas=(0.8, 0.95), **READERS[reader]), number, rows)
    helpers.run(Adam(tensor, betas=betas, **READERS[reader]), tensor, rows)
    assert same(helpers.values(number), helpers.values(tensor))


# ## Schedules

SCHEDULES = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedules.StepLR(o, 3),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedules.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: schedules.LinearLR(o, 0.2, 1.0, 5),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.8),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, 0.1, 3), schedules.ExponentialLR(o, 0.9)], [3]
    ),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 6, 1e-4),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.1, 3), schedules.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=_has_momentum(o)),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: _one_cycle(o),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 8, 2.0),
    "LRScheduler": lambda o: _Halving(o),
}


def _has_momentum(optimizer):
    return "betas" in optimizer.defaults or "momentum" in optimizer.defaults


def _one_cycle(optimizer):
    return schedules.OneCycleLR(optimizer, 0.1, total_steps=12, cycle_momentum=_has_momentum(optimizer))


class _Halving(schedules.LRScheduler):
    def get_lr(self):
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


def _train(optimizer, ps, make_schedule, carry_on=None):
    """Ten steps downhill on a fourth power; what the schedule set at each step."""
    schedule = make_schedule(optimizer)
    log = []
    for t in range(10):
        optimizer.zero_grad()
        loss = sum((p**4).sum() for p in ps)
        loss.backward()
        optimizer.step()
        # A loss that stops falling, for the one schedule that looks at it.
        arguments = [max(1.0, 3.0 - t)] if isinstance(schedule, schedules.ReduceLROnPlateau) else []
        schedule.step(*arguments)
        log.append([{k: g[k] for k in ("lr", "momentum", "betas") if k in g} for g in optimizer.param_groups])
    return log


def test_every_schedule_of_torch_is_tried():
    assert set(schedules.__all__) - {"LRScheduler"} <= set(SCHEDULES)


@pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS), ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_acts_as_with_torchs_optimizer(rule, reader, name):
    ours, theirs = helpers.params_for(rule, [(4, 3), (5,)]), helpers.params_for(rule, [(4, 3), (5,)])
    start = helpers.values(ours)
    got = _train(rule.build([{"params": ours[:1]}, {"params": ours[1:], "lr": 0.004}], reader), ours, SCHEDULES[name])
    want = _train(
        rule.build_twin([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.004}]), theirs, SCHEDULES[name]
    )
    assert got == want
    helpers.assert_as_torch(reader, ours, theirs, start, 10)


@classes_by_all_readers
def test_optimizer_with_a_schedule_can_be_copied_and_pickled(rule, reader):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 4)
    optimizer = rule.build(ps, reader)
    schedule = _one_cycle(optimizer)
    for row in rows[:2]:
        helpers.step(optimizer, ps, row)
        schedule.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        plain = copy.deepcopy(ps)
        twin_ps = twin.param_groups[0]["params"]
        fresh = rule.build(plain, reader)
        fresh.load_state_dict(optimizer.state_dict())
        helpers.run(twin, twin_ps, rows[2:])
        helpers.run(fresh, plain, rows[2:])
        assert same(helpers.values(twin_ps), helpers.values(plain))


# ## The table


def test_names_of_the_rows_are_different():
    assert len(BY_NAME) == len(RULES)


def test_every_rule_of_the_package_has_a_row():
    import optimizers

    public = {getattr(optimizers, name) for name in optimizers.__all__}
    classes = {c for c in public if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    assert classes - {optimizers.GenericAdaptiveOptimizer} == {rule.cls for rule in rules.RULES}
