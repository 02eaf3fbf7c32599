"""
What people do to the groups of an optimizer: they edit any number at run time, by hand or by a schedule, choose a mode
of decay for each, leave notes, derive classes and make mistakes.
"""

import itertools

import numpy as np
import pytest
import torch

from optimizers import AdamW, Rprop, WeightDecay
from tests import helpers
from tests.helpers import same
from tests.rules import CLASS_TWINS, CLASSES, READERS, pairs
from tests.test_properties import SCHEDULES
from tests.test_usage import pair

classes_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES), ids=str)
twins_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS), ids=str)

MODES = {"l2": WeightDecay(0.3, False), "decoupled": WeightDecay(0.2), "absolute": WeightDecay(0.1, absolute=True)}


# ## Hyper-parameters at run time


@twins_by_all_readers
def test_lr_set_to_zero_in_mid_training_moves_nothing_and_acts_as_in_torch(rule, reader):
    (ps, optimizer), (qs, twin), start = pair(rule, reader)
    still = []
    for t, row in enumerate(helpers.gradients(ps, 9)):
        before = helpers.values(ps)
        for stepping, params in ((optimizer, ps), (twin, qs)):
            stepping.param_groups[0]["lr"] = 0.0 if 3 <= t < 6 else 0.02
            helpers.step(stepping, params, row)
        still += [t] if same(helpers.values(ps), before) else []
    # Rprop's lr is only where its steps start, and a new one takes effect a step later in ASGD.
    assert still == {"Rprop": [], "ASGD": [4, 5, 6]}.get(rule.cls.__name__, [3, 4, 5])
    helpers.assert_as_torch(reader, ps, qs, start, 9)


@classes_by_all_readers
@pytest.mark.parametrize("mode", MODES)
def test_lr_set_to_zero_in_mid_training_moves_nothing_in_any_decay_mode(rule, reader, mode):
    if rule.cls is Rprop or (rule.cls is AdamW and mode == "l2"):
        pytest.skip("this class has no such decay")
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 6)
    optimizer = helpers.run(rule.build(ps, reader, weight_decay=MODES[mode]), ps, rows[:2])
    optimizer.param_groups[0]["lr"] = 0.0
    # ASGD's step size follows a step later.
    helpers.run(optimizer, ps, rows[2:3])
    before = helpers.values(ps)
    helpers.run(optimizer, ps, rows[3:])
    assert same(helpers.values(ps), before)


def edited(value):
    """Another value that a hyper-parameter may have; a count stays one."""
    if isinstance(value, tuple):
        return tuple(map(edited, value))
    return value - 1 if isinstance(value, int) and value > 1 else 0.9 * value + 0.005


@twins_by_all_readers
def test_every_number_of_a_group_may_be_edited_at_run_time_as_in_torch(rule, reader):
    (ps, optimizer), (qs, twin), start = pair(rule, reader)
    numbers = [k for k, v in twin.param_groups[0].items() if type(v) in (int, float, tuple)]
    switches = [k for k in ("maximize",) if k in twin.param_groups[0]]
    assert "lr" in numbers
    assert len(numbers) > 1
    rows = helpers.gradients(ps, 2 * len(numbers) + 4)
    for key, row in itertools.zip_longest([*switches, *numbers, *numbers, *switches], rows):
        if key is not None:
            value = twin.param_groups[0][key]
            value = not value if isinstance(value, bool) else edited(value)
            optimizer.param_groups[0][key] = twin.param_groups[0][key] = value
        helpers.step(optimizer, ps, row)
        helpers.step(twin, qs, row)
    helpers.assert_as_torch(reader, ps, qs, start, len(rows))


@twins_by_all_readers
def test_nan_in_lr_at_run_time_spreads_as_in_torch(rule, reader):
    (ps, optimizer), (qs, twin), _ = pair(rule, reader)
    for t, row in enumerate(helpers.gradients(ps, 4)):
        for stepping, params in ((optimizer, ps), (twin, qs)):
            stepping.param_groups[0]["lr"] = float("nan") if t == 2 else 0.01
            helpers.step(stepping, params, row)
    assert all(q.isnan().all() for q in qs) != (rule.cls is Rprop)
    torch.testing.assert_close(ps, qs, equal_nan=True, rtol=1e-14, atol=1e-14)


def torch_takes(rule, **kwargs):
    """Does torch's constructor take these arguments?"""
    try:
        rule.twin(helpers.params_for(rule), **kwargs)
    except (TypeError, ValueError):
        return False
    return True


@twins_by_all_readers
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_acts_on_a_tensor_lr_as_with_torchs_optimizer(rule, reader, name):
    if reader == "foreach" and not torch_takes(rule, lr=torch.tensor(0.1), foreach=True):
        pytest.skip("torch refuses a tensor lr here, and so do we")
    ours, theirs = helpers.params_for(rule), helpers.params_for(rule)
    start, rows = helpers.values(ours), helpers.gradients(ours, 10)
    rates, logs = [], []
    for make, ps in ((lambda g: rule.build(g, reader), ours), (rule.build_twin, theirs)):
        own = [torch.tensor(lr, dtype=torch.float64) for lr in (0.02, 0.004)]
        optimizer = make([{"params": ps[:2], "lr": own[0]}, {"params": ps[2:], "lr": own[1]}])
        schedule, log = SCHEDULES[name](optimizer), []
        for t, row in enumerate(rows):
            helpers.step(optimizer, ps, row)
            schedule.step(*([max(1.0, 3.0 - t)] if name == "ReduceLROnPlateau" else []))
            log.append([{k: g[k] for k in ("momentum", "betas") if k in g} for g in optimizer.param_groups])
            log.append([rate.item() for rate in own])
        assert all(g["lr"] is rate for g, rate in zip(optimizer.param_groups, own, strict=True))
        rates.append(own)
        logs.append(log)
    assert logs[0] == logs[1]
    assert same(*rates)
    helpers.assert_as_torch(reader, ours, theirs, start, 10)


TAKEN = [
    *({"lr": 1}, {"lr": np.float64(0.02)}, {"lr": np.float32(0.02)}, {"weight_decay": 1}, {"weight_decay": 0.0}),
    *(
        {"weight_decay": torch.tensor(0.1, dtype=torch.float64)},
        {"eps": 0.01},
        {"eps": 1},
        {"betas": (0, 0.9)},
        {"betas": (0.0, 0.0)},
    ),
    *({"betas": (np.float64(0.8), np.float64(0.9))}, {"momentum": 0}, {"alpha": 1}, {"rho": 1}, {"t0": 3}),
]


@twins_by_all_readers
@pytest.mark.parametrize("kwargs", TAKEN, ids=str)
def test_number_of_any_kind_that_torchs_class_takes_acts_as_there(rule, reader, kwargs):
    if not torch_takes(rule, **kwargs):
        pytest.skip("torch's class does not take it")
    ps, qs = helpers.params_for(rule), helpers.params_for(rule)
    start, rows = helpers.values(ps), helpers.gradients(ps, 3)
    helpers.run(rule.build(ps, reader, **kwargs), ps, rows)
    helpers.run(rule.build_twin(qs, **kwargs), qs, rows)
    helpers.assert_as_torch(reader, ps, qs, start, 3)


# ## Groups


@classes_by_all_readers
def test_groups_with_their_own_decay_modes_equal_separate_optimizers(rule, reader):
    if rule.cls is Rprop:
        pytest.skip("Rprop has no decay")
    modes = {k: mode for k, mode in MODES.items() if k != "l2" or rule.cls is not AdamW}
    together = helpers.params_for(rule, [(4, 3)] * len(modes))
    apart = helpers.copies(together)
    rows = helpers.gradients(together, 5)
    groups = [{"params": [p], "weight_decay": mode} for p, mode in zip(together, modes.values(), strict=True)]
    optimizer = helpers.run(rule.build(groups, reader), together, rows)
    for i, (p, mode) in enumerate(zip(apart, modes.values(), strict=True)):
        own = helpers.run(rule.build([p], reader, weight_decay=mode), [p], [[row[i]] for row in rows])
        kept = {k: v for k, v in optimizer.param_groups[i].items() if k != "params"}
        assert kept == {k: v for k, v in own.param_groups[0].items() if k != "params"}
    assert same(helpers.values(together), helpers.values(apart))


@classes_by_all_readers
def test_group_without_parameters_is_carried_along(rule, reader):
    ps, plain = helpers.params_for(rule), helpers.params_for(rule)
    rows = helpers.gradients(ps, 4)
    optimizer = rule.build([{"params": []}, {"params": ps[:3]}, {"params": []}], reader)
    optimizer.param_groups[2]["params"].append(ps[3])
    helpers.run(optimizer, ps, rows)
    helpers.run(rule.build(plain, reader), plain, rows)
    assert same(helpers.values(ps), helpers.values(plain))


@classes_by_all_readers
@pytest.mark.parametrize("note", ["head", None, [1, 2], {"a": 1}, torch.ones(3), (torch.ones(2), 1)], ids=str)
def test_what_a_user_notes_in_a_group_changes_nothing(rule, reader, note):
    ps, plain = helpers.params_for(rule), helpers.params_for(rule)
    rows = helpers.gradients(ps, 4)
    optimizer = rule.build([{"params": ps, "note": note}], reader)
    helpers.run(optimizer, ps, rows)
    helpers.run(rule.build(plain, reader), plain, rows)
    assert same(helpers.values(ps), helpers.values(plain))
    assert optimizer.param_groups[0]["note"] is note


# ## Errors


@classes_by_all_readers
def test_closure_that_fails_moves_nothing_and_the_next_step_is_the_first(rule, reader):
    ps, plain, fired = helpers.params_for(rule), helpers.params_for(rule), []
    rows = helpers.gradients(ps, 3)
    optimizer = rule.build(ps, reader)
    optimizer.register_step_post_hook(lambda *_: fired.append(1))

    def fails():
        raise LookupError("of the closure")

    for row in rows:
        before = helpers.values(ps)
        for p, g in zip(ps, row, strict=True):
            p.grad = g.clone()
        with pytest.raises(LookupError, match="of the closure"):
            optimizer.step(fails)
        assert same(helpers.values(ps), before)
        optimizer.step()
    helpers.run(rule.build(plain, reader), plain, rows)
    assert same(helpers.values(ps), helpers.values(plain))
    assert len(fired) == 3


# What can't be recorded is not read before it steps.
@pytest.mark.parametrize(
    ("rule", "reader"),
    pairs((rule for rule in CLASSES if "fused" in rule.readers), ["foreach", "fused", "default"]),
    ids=str,
)
@pytest.mark.parametrize("bad", [None, "0.1"], ids=str)
@pytest.mark.parametrize("key", ["lr", "weight_decay", "eps", "betas", "momentum", "alpha", "rho", "etas"])
def test_what_is_no_number_in_a_later_group_is_an_error_before_anything_moves(rule, reader, key, bad):
    ps = helpers.params_for(rule)
    # RAdam's first steps don't divide, and need no eps.
    rows = helpers.gradients(ps, 9)
    optimizer = rule.build([{"params": ps[:2]}, {"params": ps[2:]}], reader)
    if not optimizer.param_groups[1].get(key) or (rule.cls is Rprop and key == "lr"):
        pytest.skip("not in use in this class")
    helpers.run(optimizer, ps, rows[:8])
    before = helpers.values(ps)
    optimizer.param_groups[1][key] = bad
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        helpers.step(optimizer, ps, rows[8])
    assert same(helpers.values(ps), before)
    assert all(s["step"].item() == 8 for s in optimizer.state.values() if "step" in s)


# ## Hooks


@classes_by_all_readers
def test_hooks_fire_once_whichever_class_is_built_first(rule, reader):
    for order in itertools.permutations(range(4)):

        class Base(rule.cls):
            pass

        class Child(Base):
            pass

        class Wrapping(Child):
            def step(self, closure=None):
                return super().step(closure)

        class Grandchild(Wrapping):
            pass

        built, fired = {}, []
        for i in order:
            ps = helpers.params_for(rule)
            cls = (Base, Child, Wrapping, Grandchild)[i]
            optimizer = built[i] = cls(ps, **rule.kwargs, **READERS[reader])
            optimizer.register_step_pre_hook(lambda *_, i=i, fired=fired: fired.append((i, "before")))
            optimizer.register_step_post_hook(lambda *_, i=i, fired=fired: fired.append((i, "after")))
        for i in range(4):
            built[i].step()
        assert fired == [(i, when) for i in range(4) for when in ("before", "after")]
