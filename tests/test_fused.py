"""
The fused reader: what it takes, what it notices when something changes under it, and what it says where it can't.

Words of single operations are tested in `test_recorder.py`, what holds for every reader in `test_properties.py`.
"""

import ast
import copy
import itertools
import logging
import math
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optimizers import SGD, Adam, AdamW, GenericAdaptiveOptimizer, RMSprop, WeightDecay
from optimizers.engines import c_launch, compiler
from tests import helpers
from tests.helpers import assert_within, same, same_state
from tests.rules import CLASSES, READERS, RULES

ROOT = Path(__file__).parent.parent
SINGLE, FOREACH, FUSED = READERS["single"], READERS["foreach"], READERS["fused"]
BIG = c_launch.THREADING_ELEMENTS + 1234

all_classes = pytest.mark.parametrize("rule", [rule for rule in CLASSES if "fused" in rule.readers], ids=str)
all_rules = pytest.mark.parametrize("rule", [rule for rule in RULES if "fused" in rule.readers], ids=str)


class Plain(GenericAdaptiveOptimizer):
    """A rule with a state whose operations are exact in a kernel, so that results can be compared bit for bit."""

    def __init__(self, params, lr=0.1, **kwargs):
        super().__init__(params, kwargs, lr)

    def init_state(self, state, group, param):
        state["step"] = 0
        state["average"] = torch.zeros_like(param)

    def step_param(self, state, group, grad, param):
        state["average"].lerp_(grad, 1 / (1 + state["step"]))
        param.sub_(state["average"], alpha=group["lr"])


def readers(optimizer):
    return [e.reader for e in optimizer.explain().entries]


def pair(cls, shapes=helpers.SHAPES, dtype=torch.float32, ps=None, **kwargs):
    """The same parameters for an optimizer that steps by kernels, and for one that steps plainly."""
    ps = ps or helpers.params(shapes, dtype)
    qs = helpers.copies(ps)
    return ps, cls(ps, **FUSED, **kwargs), qs, cls(qs, **SINGLE, **kwargs)


def as_laid_out(param, grad):
    """A gradient laid out like its parameter, as autograd makes it."""
    return torch.empty_like(param, requires_grad=False).copy_(grad)


def assert_same_path(cls, steps=5, ps=None, **kwargs):
    """Bit for bit, by kernels and plainly."""
    ps, optimizer, qs, plain = pair(cls, ps=ps, **kwargs)
    rows = [list(map(as_laid_out, ps, row)) for row in helpers.gradients(ps, steps)]
    start = helpers.values(ps)
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    assert set(readers(optimizer)) == {"fused"}
    assert not any(same(p, s) for p, s in zip(ps, start, strict=True) if p.numel())
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, plain)
    return optimizer


@pytest.fixture
def sources(monkeypatch):
    """The sources of all kernels that are asked for."""
    asked = []
    load = compiler.load

    def spy(source):
        asked.append(source)
        return load(source)

    monkeypatch.setattr(compiler, "load", spy)
    return asked


# ## New rules


def test_rule_defined_here_is_fused_without_registration():
    class Lion(GenericAdaptiveOptimizer):
        def init_state(self, state, group, param):
            state["exp_avg"] = torch.zeros_like(param)

        def step_param(self, state, group, grad, param):
            m = state["exp_avg"]
            param.sub_(m.lerp(grad, 0.1).sign(), alpha=group["lr"])
            m.lerp_(grad, 0.01)

    assert_same_path(lambda ps, **k: Lion(ps, k, lr=0.1))


def test_subclass_that_overrides_get_lr_is_fused():
    class Warm(Adam):
        def get_lr(self, state, group):
            return group["lr"] * min(1.0, state["step"] / 4)

    ps, optimizer, qs, plain = pair(Warm, lr=0.05)
    start, rows = helpers.values(ps), helpers.gradients(ps, 6)
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    assert readers(optimizer) == ["fused"]
    assert optimizer.explain().entries[0].kernel.startswith("Warm_")
    assert_within(2 * 6, ps, qs, start)
    others = helpers.params(dtype=torch.float32)
    helpers.run(Adam(others, lr=0.05, fused=True), others, rows)
    assert not same(helpers.values(ps), helpers.values(others))


def test_subclass_that_overrides_get_mv_is_fused():
    class Belief(Adam):
        def get_mv(self, state, group, grad):
            beta1, beta2 = group["betas"]
            m, s = state["exp_avg"], state["exp_avg_sq"]
            m.lerp_(grad, 1 - beta1)
            surprise = grad - m
            s.mul_(beta2).addcmul_(surprise, surprise, value=1 - beta2)
            return m, s

    ps, optimizer, qs, plain = pair(Belief, lr=0.05, weight_decay=0.1)
    start, rows = helpers.values(ps), helpers.gradients(ps, 6)
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    assert readers(optimizer) == ["fused"]
    assert_within(2 * 6, ps, qs, start)


def test_branch_on_the_count_takes_the_right_kernel_at_each_step(sources):
    class Late(Plain):
        def step_param(self, state, group, grad, param):
            if state["step"] > 3:
                grad = grad.sign()
            param.sub_(grad, alpha=group["lr"] / math.sqrt(state["step"]))

    assert_same_path(Late, steps=6)
    assert len(set(sources)) == 2


def test_parameters_on_both_sides_of_a_branch_get_a_launch_each():
    class Late(Plain):
        def step_param(self, state, group, grad, param):
            if state["step"] > 2:
                grad = grad.sign()
            param.sub_(grad, alpha=group["lr"])

    ps, optimizer, qs, plain = pair(Late, shapes=[(5,), (6,), (7,), (8,)])
    rows = helpers.gradients(ps, 5)
    rows = [[g if i % 2 == 0 or n > 1 else None for i, g in enumerate(row)] for n, row in enumerate(rows)]
    for n, row in enumerate(rows):
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
        assert same(helpers.values(ps), helpers.values(qs))
        assert sum(e.launches for e in optimizer.explain().entries) == (2 if n in (2, 3) else 1)
    assert same_state(optimizer, plain)


def test_loop_over_numbers_is_fused():
    class Newton(Plain):
        def step_param(self, state, group, grad, param):
            x = grad.abs().add(1.0)
            for _ in range(3):
                x = (x + (grad.abs() + 1.0) * x.reciprocal()) * 0.5
            param.sub_(x, alpha=group["lr"])

    assert_same_path(Newton)


def test_rule_that_reassigns_a_state_is_fused():
    class Reassigned(Plain):
        def step_param(self, state, group, grad, param):
            state["average"] = state["average"] * 0.5 + grad
            param.sub_(state["average"], alpha=group["lr"])

    assert_same_path(Reassigned)


def test_rule_that_swaps_two_states_is_fused():
    class Swapped(Plain):
        def init_state(self, state, group, param):
            state["one"], state["two"] = torch.zeros_like(param), torch.ones_like(param)

        def step_param(self, state, group, grad, param):
            state["one"], state["two"] = state["two"], state["one"] + grad
            param.sub_(state["one"], alpha=group["lr"])

    assert_same_path(Swapped)


def test_state_that_is_added_later_is_kept():
    class Grows(Plain):
        def step_param(self, state, group, grad, param):
            if state["step"] == 2:
                state["seen"] = grad.clone()
            if state["step"] > 3:
                param.add_(state["seen"])
            param.sub_(grad, alpha=group["lr"])

    assert_same_path(Grows, steps=6)


def test_further_scalar_of_the_state_is_counted_for_each_parameter():
    class Product(Plain):
        scalar_state = ("step", "product")

        def init_state(self, state, group, param):
            state["step"], state["product"] = 0, 1.0

        def step_param(self, state, group, grad, param):
            state["product"] = state["product"] * 0.5
            param.sub_(grad, alpha=group["lr"] * state["product"])

    ps, optimizer, qs, plain = pair(Product)
    rows = helpers.gradients(ps, 6)
    rows = [[g if (i + n) % 3 else None for i, g in enumerate(row)] for n, row in enumerate(rows)]
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, plain)
    assert optimizer.state[ps[0]]["product"].item() == 0.5**4


def test_scalar_that_only_some_groups_have_is_counted():
    class Some(Plain):
        scalar_state = ("step", "product")

        def init_state(self, state, group, param):
            state["step"] = 0
            if group["product"]:
                state["product"] = 1.0

        def step_param(self, state, group, grad, param):
            factor = 1.0
            if "product" in state:
                factor = state["product"] = state["product"] * 0.5
            param.sub_(grad, alpha=group["lr"] * factor)

    def groups(ps):
        return [{"params": [p], "product": i % 2 == 0} for i, p in enumerate(ps)]

    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    rows = helpers.gradients(ps, 4)
    helpers.run(Some(groups(ps), **FUSED), ps, rows)
    helpers.run(Some(groups(qs), **SINGLE), qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))


@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_number_that_a_rule_keeps_in_its_state_is_there_at_the_next_step(reader):
    class Remembers(Plain):
        def init_state(self, state, group, param):
            state["factor"] = 1.0

        def step_param(self, state, group, grad, param):
            state["factor"] = state["factor"] * 0.5
            param.sub_(grad, alpha=group["lr"] * state["factor"])

    p = Parameter(torch.tensor(2.0))
    optimizer = Remembers([p], lr=1.0, **READERS.get(reader, {}))
    for left in (1.5, 1.25, 1.125):
        try:
            helpers.step(optimizer, [p], [torch.tensor(1.0)])
        except (RuntimeError, TypeError) as error:
            assert "scalar_state" in str(error)  # noqa: PT017 - to be told is as good
            return
        assert p.item() == left
    assert float(optimizer.state[p]["factor"]) == 0.125


NAMES = ["i", "s0", "s1", "x4", "x5", "to", "from", "exp", "double", "int", "real", "launch", "FMA", "scalars", "θ"]
NAMES += ["grad", "param", "with space", "momentum-buffer", "i_", "*/", "update"]


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_state_may_be_any(name):
    class Named(Plain):
        def init_state(self, state, group, param):
            state[name] = torch.zeros_like(param)

        def step_param(self, state, group, grad, param):
            v = state[name]
            v.mul_(0.9).add_(grad, alpha=0.5)
            param.mul_(0.99).sub_(v.exp().clamp_(max=3.0), alpha=group["lr"])

    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    start, rows = helpers.values(ps), helpers.gradients(ps, 4)
    optimizer = helpers.run(Named(ps), ps, rows)
    helpers.run(Named(qs, **SINGLE), qs, rows)
    assert_within(4 * 4, ps, qs, start)
    assert readers(optimizer) == ["fused"]


def test_operations_whose_values_are_not_used_do_no_harm():
    class Wasteful(Plain):
        def step_param(self, state, group, grad, param):
            grad.mul(2.0).add(param).sqrt()
            param.sub_(grad, alpha=group["lr"])
            param.exp()

    assert_same_path(Wasteful)


def test_rule_that_moves_nothing_is_fused():
    class Idle(Plain):
        def step_param(self, state, group, grad, param):
            pass

    ps = helpers.params(dtype=torch.float32)
    start = helpers.values(ps)
    optimizer = helpers.run(Idle(ps, fused=True), ps, helpers.gradients(ps, 3))
    assert same(helpers.values(ps), start)
    assert optimizer.state[ps[0]]["step"].item() == 3


def test_error_of_the_rule_itself_comes_through_and_nothing_has_moved():
    class Fails(Plain):
        def step_param(self, state, group, grad, param):
            if state["step"] == 3 and group["fails"]:
                raise LookupError("of the rule")
            super().step_param(state, group, grad, param)

    ps, optimizer, qs, plain = pair(Fails, fails=True)
    rows = helpers.gradients(ps, 4)
    helpers.run(optimizer, ps, rows[:2])
    before, state = helpers.values(ps), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(LookupError, match="of the rule"):
        helpers.step(optimizer, ps, rows[2])
    assert same(helpers.values(ps), before)
    assert all(same(optimizer.state_dict()["state"][i][k], s[k]) for i, s in state["state"].items() for k in s)
    optimizer.param_groups[0]["fails"] = plain.param_groups[0]["fails"] = False
    helpers.run(optimizer, ps, rows[2:])
    helpers.run(plain, qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))


# ## What can't be fused


def _norm(state, group, grad, param):
    param.sub_(grad / grad.norm(), alpha=group["lr"])


def _product(state, group, grad, param):
    param.sub_((grad @ grad.t()) @ grad, alpha=group["lr"])


def _looks(state, group, grad, param):
    if grad.sum() > 0:
        param.sub_(grad, alpha=group["lr"])


def _looks_at_a_mask(state, group, grad, param):
    if grad > 1e9:
        param.sub_(grad, alpha=group["lr"])


def _matrix_product(state, group, grad, param):
    param.sub_(grad @ group["matrix"](), alpha=group["lr"])


def _indexes(state, group, grad, param):
    param[0] = 1.0
    param.sub_(grad, alpha=group["lr"])


def _floors(state, group, grad, param):
    param.sub_(grad // 0.5, alpha=group["lr"])


def _rounds(state, group, grad, param):
    param.sub_(grad.div(0.5, rounding_mode="floor"), alpha=group["lr"])


def _multiplies_by_a_tensor(state, group, grad, param):
    param.sub_(grad * torch.tensor([0.5, 1.0, 2.0]), alpha=group["lr"])


def _tensor_first(state, group, grad, param):
    param.sub_(torch.tensor([0.5, 1.0, 2.0]) * grad, alpha=group["lr"])


# The rule, and what the reason must name.
REFUSED = {
    "norm": (_norm, "norm"),
    "matrix product with a transpose": (_product, "t"),
    "looks at a sum": (_looks, "sum"),
    "matrix product": (_matrix_product, "matmul|@"),
    "writes at an index": (_indexes, "setitem|index|\\["),
    "floor division": (_floors, "floor|//"),
    "rounding mode": (_rounds, "rounding_mode|div"),
    "multiplies by a tensor": (_multiplies_by_a_tensor, "tensor|Tensor"),
    "tensor first": (_tensor_first, "tensor|Tensor"),
}
all_refused = pytest.mark.parametrize("name", REFUSED)


def refused_rule(name, ps, **kwargs):
    step_param = REFUSED[name][0]

    class Refused(Plain):
        def step_param(self, state, group, grad, param):
            step_param(state, group, grad, param)

    return Refused(ps, matrix=lambda: torch.eye(3), **kwargs)


@all_refused
def test_rule_outside_the_vocabulary_steps_by_the_next_reader(name):
    ps, qs = helpers.params([(3, 3), (3, 3)], torch.float32), helpers.params([(3, 3), (3, 3)], torch.float32)
    start, rows = helpers.values(ps), helpers.gradients(ps, 4)
    optimizer = helpers.run(refused_rule(name, ps), ps, rows)
    helpers.run(refused_rule(name, qs, **SINGLE), qs, rows)
    assert not same(helpers.values(ps), start)
    assert same(helpers.values(ps), helpers.values(qs))
    assert "fused" not in readers(optimizer)


@all_refused
def test_report_names_the_operation_and_the_line_that_keep_a_rule_from_being_fused(name):
    ps = helpers.params([(3, 3)], torch.float32)
    optimizer = helpers.run(refused_rule(name, ps), ps, helpers.gradients(ps, 2))
    (entry,) = optimizer.explain().entries
    function, operation = REFUSED[name]
    line = re.search(r"test_fused\.py:(\d+)", entry.reason)
    first = function.__code__.co_firstlineno
    assert line
    assert first < int(line[1]) <= first + 3
    assert re.search(operation, entry.reason)
    assert entry.reason in str(optimizer.explain())


@all_refused
def test_fused_true_that_cannot_be_had_says_why_and_moves_nothing(name):
    ps = helpers.params([(3, 3), (3, 3)], torch.float32)
    start, rows = helpers.values(ps), helpers.gradients(ps, 3)
    optimizer = refused_rule(name, ps, fused=True)
    for row in rows:
        with pytest.raises(RuntimeError, match=r"fused=True can't be had.*test_fused\.py:\d+.*Leave `fused` out"):
            helpers.step(optimizer, ps, row)
    assert same(helpers.values(ps), start)
    assert all(s["step"].item() == 0 for s in optimizer.state_dict()["state"].values())


@all_refused
def test_reason_is_logged_once(name, caplog):
    ps = helpers.params([(3, 3), (3, 3)], torch.float32)
    optimizer = refused_rule(name, ps)
    rows = helpers.gradients(ps, 6)
    rows[2][0] = rows[3][1] = None
    with caplog.at_level(logging.DEBUG, logger="optimizers"):
        helpers.run(optimizer, ps, rows)
        optimizer.explain()
    records = [r for r in caplog.records if r.name == "optimizers"]
    assert len(records) == 1
    assert records[0].levelno == logging.WARNING
    assert "test_fused.py:" in records[0].getMessage()


def test_rule_that_looks_at_a_value_steps_one_by_one():
    ps, qs = helpers.params([()], torch.float32), helpers.params([()], torch.float32)

    class Looks(Plain):
        def step_param(self, state, group, grad, param):
            _looks_at_a_mask(state, group, grad, param)

    rows = [[torch.tensor(2e9)], [torch.tensor(1.0)]]
    optimizer = helpers.run(Looks(ps), ps, rows)
    helpers.run(Looks(qs, **SINGLE), qs, rows)
    assert readers(optimizer) == ["single"]
    assert "looked at" in optimizer.explain().entries[0].reason
    assert same(helpers.values(ps), helpers.values(qs))


def test_rule_that_writes_through_the_gradient_is_not_fused():
    class Writes(Plain):
        def step_param(self, state, group, grad, param):
            grad.mul_(2.0)
            param.sub_(grad, alpha=group["lr"])

    ps = helpers.params(dtype=torch.float32)
    start = helpers.values(ps)
    with pytest.raises(RuntimeError, match=r"`mul_` writes through the gradient \(test_fused\.py:\d+: grad\.mul_"):
        helpers.run(Writes(ps, fused=True), ps, helpers.gradients(ps, 1))
    assert same(helpers.values(ps), start)


@pytest.mark.parametrize("reader", ["fused", "foreach", "default"])
def test_number_that_is_none_is_an_error_of_the_rule_and_nothing_has_moved(reader):
    class Wrong(Plain):
        def step_param(self, state, group, grad, param):
            param.sub_(grad.mul("half" if state["step"] == 2 else 0.5))

    ps = helpers.params(dtype=torch.float32)
    optimizer = Wrong(ps, **READERS.get(reader, {}))
    rows = helpers.gradients(ps, 2)
    helpers.step(optimizer, ps, rows[0])
    before = helpers.values(ps)
    with pytest.raises((TypeError, RuntimeError), match=r"half|str"):
        helpers.step(optimizer, ps, rows[1])
    assert same(helpers.values(ps), before)


def test_one_group_that_cannot_be_fused_leaves_the_others_fused():
    ps = [*helpers.params([(4, 4), (5,)], torch.float32), Parameter(torch.ones(6)[::2])]
    qs = helpers.copies(ps)
    rows = helpers.gradients(ps, 3)
    optimizer = helpers.run(Plain(ps), ps, rows)
    helpers.run(Plain(qs, **SINGLE), qs, rows)
    assert readers(optimizer) == ["fused", "foreach"]
    assert same(helpers.values(ps), helpers.values(qs))
    with pytest.raises(RuntimeError, match=r"gaps in memory|strides"):
        helpers.step(Plain(ps, fused=True), ps, rows[0])


def test_refusal_in_the_middle_of_training_moves_nothing():
    ps = helpers.params([(4, 4), (5,)], torch.float32)
    optimizer = Plain(ps, fused=True)
    rows = helpers.gradients(ps, 3)
    helpers.run(optimizer, ps, rows)
    before, state = helpers.values(ps), copy.deepcopy(optimizer.state_dict()["state"])
    ps[1].data = torch.ones(10)[::2]
    before[1] = torch.ones(5)
    with pytest.raises(RuntimeError, match=r"gaps in memory|strides"):
        helpers.step(optimizer, ps, rows[0])
    assert same(helpers.values(ps), before)
    now = optimizer.state_dict()["state"]
    assert all(same(now[i][k], state[i][k]) for i in state for k in state[i])


def test_reason_in_a_folder_named_torch_still_names_the_line_of_the_rule(tmp_path, monkeypatch):
    folder = tmp_path / "torch" / "mine"
    folder.mkdir(parents=True)
    (folder / "page_of_a_rule.py").write_text(
        "from optimizers import GenericAdaptiveOptimizer\n\n\n"
        "class Norm(GenericAdaptiveOptimizer):\n"
        "    def step_param(self, state, group, grad, param):\n"
        "        param.sub_(grad / grad.norm())\n"
    )
    monkeypatch.syspath_prepend(folder)
    import page_of_a_rule  # type: ignore[import-not-found]

    (entry,) = page_of_a_rule.Norm([Parameter(torch.ones(3))], {}, lr=1.0).explain().entries
    assert "page_of_a_rule.py:6" in entry.reason


# ## Readers


@pytest.mark.parametrize(
    ("kwargs", "reader"),
    [
        ({}, "fused"),
        ({"fused": True}, "fused"),
        ({"fused": True, "foreach": False}, "fused"),
        ({"foreach": False}, "fused"),
        ({"foreach": True}, "foreach"),
        ({"foreach": True, "fused": False}, "foreach"),
        ({"fused": False}, "foreach"),
        ({"foreach": False, "fused": False}, "single"),
    ],
    ids=str,
)
def test_arguments_choose_the_reader(kwargs, reader, caplog):
    ps = helpers.params(dtype=torch.float32)
    optimizer = helpers.run(Adam(ps, **kwargs), ps, helpers.gradients(ps, 2))
    assert readers(optimizer) == [reader]
    assert caplog.records == []


@all_classes
def test_both_readers_at_once_are_refused(rule):
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        rule.build(helpers.params(), fused=True, foreach=True)


def test_reader_may_be_changed_between_steps():
    ps, optimizer, qs, plain = pair(Plain)
    rows = helpers.gradients(ps, 6)
    seen = []
    changes = [FUSED, {"foreach": True, "fused": None}, SINGLE, {"foreach": None, "fused": None}, {"fused": False}]
    for row, change in itertools.zip_longest(rows, changes, fillvalue={"fused": True}):
        optimizer.param_groups[0].update(change)
        helpers.step(optimizer, ps, row)
        seen += readers(optimizer)
    helpers.run(plain, qs, rows)
    assert seen == ["fused", "foreach", "single", "fused", "foreach", "fused"]
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, plain)


def test_groups_may_wish_for_different_readers():
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    wishes = [FUSED, {"foreach": True}, SINGLE, {}]
    rows = helpers.gradients(ps, 4)
    optimizer = Plain([{"params": [p], **wish} for p, wish in zip(ps, wishes, strict=True)])
    helpers.run(optimizer, ps, rows)
    helpers.run(Plain(qs, **SINGLE), qs, rows)
    assert sorted(readers(optimizer)) == ["foreach", "fused", "fused", "single"]
    assert same(helpers.values(ps), helpers.values(qs))


def test_readers_own_wish_is_its_reason():
    ps = helpers.params(dtype=torch.float32)
    assert SGD(ps, fused=False).explain().entries[0].reason == "fused=False"
    assert SGD(ps, foreach=True).explain().entries[0].reason == "foreach=True"


# ## Launches


def test_dtypes_get_a_launch_each():
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
    ps = [p for dtype in dtypes for p in helpers.params([(4, 3), (5,)], dtype)]
    qs = helpers.copies(ps)
    start, rows = helpers.values(ps), helpers.gradients(ps, 4)
    optimizer = helpers.run(Adam(ps, lr=0.01, fused=True), ps, rows)
    helpers.run(Adam(qs, lr=0.01, **SINGLE), qs, rows)
    entries = optimizer.explain().entries
    assert sorted(e.dtype for e in entries) == sorted(str(d).removeprefix("torch.") for d in dtypes)
    assert [(e.reader, e.tensors, e.launches, e.elements) for e in entries] == [("fused", 2, 1, 17)] * 5
    for i in range(0, len(ps), 2):
        group = slice(i, i + 2)
        assert_within(2 * 4, [p.detach() for p in ps[group]], qs[group], start[group])
    assert all(p.dtype == optimizer.state[p]["exp_avg"].dtype for p in ps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-8, 65504.0, 1e30, 3.4e38, float("inf"), float("nan"), 1 / 3, 6e-8])
def test_half_precision_is_rounded_as_torch_rounds(dtype, value):
    class Store(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.copy_(grad.mul(group["lr"]))

    p, q = Parameter(torch.ones(4, dtype=dtype)), Parameter(torch.ones(4, dtype=dtype))
    p.grad = torch.tensor([1.0, -1.0, 1.001, 0.5], dtype=dtype)
    q.grad = p.grad.clone()
    factor = value if math.isfinite(value) else 1.0
    if factor != value:
        p.grad.fill_(value)
        q.grad.fill_(value)
    Store([p], {"fused": True}, lr=1.0).step()
    store = Store([p], {"fused": True}, lr=abs(factor))
    plain = Store([q], SINGLE, lr=abs(factor))
    store.step()
    plain.step()
    assert torch.equal(p.isnan(), q.isnan())
    assert same(p.detach().nan_to_num(0.0), q.detach().nan_to_num(0.0))


def test_groups_that_differ_only_in_numbers_share_one_launch(sources):
    ps = helpers.params([(3,)] * 465, torch.float32)
    alone = helpers.copies(ps)
    rows = helpers.gradients(ps, 3)

    def groups(ps):
        return [{"params": [p], "lr": 1e-3 * (i + 1), "weight_decay": 1e-4 * (i + 1)} for i, p in enumerate(ps)]

    optimizer = helpers.run(AdamW(groups(ps), fused=True), ps, rows)
    (entry,) = optimizer.explain().entries
    assert (entry.launches, entry.cohorts, entry.tensors, len(entry.groups)) == (1, 465, 465, 465)
    assert len(set(sources)) == 1
    for i in (0, 1, 200, 464):
        helpers.run(AdamW(groups(alone)[i : i + 1], fused=True), [alone[i]], [[row[i]] for row in rows])
        assert same(ps[i], alone[i])


def test_groups_that_differ_in_what_they_do_get_a_launch_each():
    ps = helpers.params([(3,)] * 6, torch.float32)
    options = [{}, {"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}, {"amsgrad": True}, {"lr": 1.0}]
    optimizer = Adam([{"params": [p], **o} for p, o in zip(ps, options, strict=True)], fused=True)
    helpers.run(optimizer, ps, helpers.gradients(ps, 2))
    assert sorted(e.groups for e in optimizer.explain().entries) == [(0, 5), (1, 4), (2,), (3,)]


def test_schedule_recompiles_nothing(sources):
    ps, optimizer, qs, plain = pair(Plain)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 20) for o in (optimizer, plain)]
    rows = helpers.gradients(ps, 20)
    for row in rows:
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
        for schedule in schedules:
            schedule.step()
    assert len(sources) == 1
    assert optimizer.param_groups[0]["lr"] != 0.1
    assert same(helpers.values(ps), helpers.values(qs))


def test_schedule_that_reaches_zero_and_other_special_numbers_recompiles_nothing(sources):
    ps, optimizer, qs, plain = pair(Plain)
    for lr, row in zip([0.1, 0.0, 1.0, 2.0, 0.5, 2, 1], helpers.gradients(ps, 7), strict=True):
        optimizer.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = lr
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
    assert len(sources) == 1
    assert same(helpers.values(ps), helpers.values(qs))


def test_tensor_lr_that_is_filled_is_seen_at_the_next_step(sources):
    lr, plain_lr = torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    optimizer, plain = Plain(ps, lr=lr, **FUSED), Plain(qs, lr=plain_lr, **SINGLE)
    for value, row in zip([0.1, 0.5, 0.025], helpers.gradients(ps, 3), strict=True):
        lr.fill_(value)
        plain_lr.fill_(value)
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
    assert len(sources) == 1
    assert same(helpers.values(ps), helpers.values(qs))


def test_same_rule_in_another_optimizer_loads_the_same_kernel():
    ps, qs = helpers.params(dtype=torch.float32), helpers.params([(9,)], torch.float32)
    one, two = Adam(ps), Adam(qs, lr=0.5, eps=1e-4)
    helpers.run(one, ps, helpers.gradients(ps, 1))
    helpers.run(two, qs, helpers.gradients(qs, 1))
    assert one.explain().entries[0].kernel == two.explain().entries[0].kernel
    assert one._stepper._plan.jobs[0].launches[0].kernel is two._stepper._plan.jobs[0].launches[0].kernel


# ## Inside the kernel


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"maximize": True}, "grad = grad.neg()"),
        ({"weight_decay": 0.1}, "return grad.add(param, alpha=weight_decay)"),
        ({"weight_decay": WeightDecay(0.1)}, "param.mul_(1 - lr * weight_decay)"),
        ({"weight_decay": WeightDecay(0.1, absolute=True)}, "param.mul_(1 - weight_decay)"),
        ({"amsgrad": True}, "v_max.copy_(torch.maximum(v_max, v))"),
    ],
    ids=["maximize", "l2", "decoupled", "absolute", "amsgrad"],
)
def test_option_is_inside_the_one_kernel(options, line):
    ps = helpers.params(dtype=torch.float32)
    optimizer = helpers.run(Adam(ps, fused=True, **options), ps, helpers.gradients(ps, 2))
    (entry,) = optimizer.explain().entries
    assert entry.launches == 1
    assert line in optimizer.kernel_source()


def test_source_of_the_kernel_has_the_lines_of_the_rule():
    ps = helpers.params(dtype=torch.float32)
    optimizer = Plain(ps)
    for _ in range(2):
        source = optimizer.kernel_source()
        assert 'state["average"].lerp_(grad, 1 / (1 + state["step"]))' in source
        assert 'param.sub_(state["average"], alpha=group["lr"])' in source
        assert source.count("static void update(") == 1
        helpers.run(optimizer, ps, helpers.gradients(ps, 1))


def test_source_is_empty_where_there_is_no_kernel():
    ps = helpers.params()
    assert Plain(ps, fused=False).kernel_source() == ""


def test_line_of_a_rule_cannot_end_the_comment_that_it_is_in():
    class Odd(Plain):
        def step_param(self, state, group, grad, param):
            _ = "*/ #error /* \\", param.sub_(grad * 2.0)

    assert_same_path(Odd)


# ## Looking


def test_explain_before_the_first_step_changes_nothing():
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    start = helpers.values(ps)
    optimizer = Adam(ps, fused=True)
    before = optimizer.explain()
    assert optimizer.kernel_source()
    assert dict(optimizer.state) == {}
    assert optimizer.state_dict()["state"] == {}
    assert same(helpers.values(ps), start)
    assert all(p.grad is None for p in ps)
    rows = helpers.gradients(ps, 3)
    helpers.run(optimizer, ps, rows)
    plain = helpers.run(Adam(qs, fused=True), qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, plain)
    after = optimizer.explain()
    assert [e.kernel for e in after.entries] == [e.kernel for e in before.entries]


@all_rules
def test_looking_between_steps_changes_nothing(rule):
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    looked, other = rule.build(ps, "fused"), rule.build(qs, "fused")
    for row in helpers.gradients(ps, 4):
        keys = [set(s) for s in looked.state.values()]
        str(looked.explain())
        looked.kernel_source()
        assert [set(s) for s in looked.state.values()] == keys
        helpers.step(looked, ps, row)
        helpers.step(other, qs, row)
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(looked, other)


def test_report_without_parameters_that_step_says_so():
    optimizer = Plain([Parameter(torch.ones(3))])
    optimizer.step()
    assert "no parameter has a gradient" in str(optimizer.explain())
    assert optimizer.kernel_source() == ""


# ## What changes under us


def changed(change):
    """Three steps by kernels, a change, and three more: as plainly with the same change."""
    ps = helpers.params([(4, 4), (5,), (4, 4)], torch.float32)
    qs = helpers.copies(ps)
    rows = helpers.gradients(ps, 6)
    optimizer, plain = Plain(ps), Plain(qs, **SINGLE)
    for stepping, params in ((optimizer, ps), (plain, qs)):
        for number, row in enumerate(rows):
            for p, g in zip(params, row, strict=True):
                p.grad = g.clone()
            if number >= 3:
                change(stepping, params, number)
            stepping.step()
    assert same(helpers.values(ps), helpers.values(qs))
    return optimizer, plain


def _grad_transposed(optimizer, ps, number):
    ps[0].grad = ps[0].grad.t().contiguous().t()


def _grad_is_double(optimizer, ps, number):
    ps[0].grad.data = ps[0].grad.data.double()


def _grad_is_half(optimizer, ps, number):
    ps[0].grad.data = ps[0].grad.data.to(torch.bfloat16)


def _grad_strided(optimizer, ps, number):
    ps[0].grad = torch.stack([ps[0].grad] * 2, dim=-1)[..., 0]


def _grad_expanded(optimizer, ps, number):
    ps[0].grad = ps[0].grad[:1].expand(4, 4)


def _grad_once_missing(optimizer, ps, number):
    if number == 4:
        ps[0].grad = None


def _grads_all_missing(optimizer, ps, number):
    if number == 4:
        for p in ps:
            p.grad = None


def _grad_written_in_place(optimizer, ps, number):
    ps[0].grad.mul_(-1.0)


def _data_swapped(optimizer, ps, number):
    ps[0].data = ps[0].data.clone() * 2


def _data_of_another_layout(optimizer, ps, number):
    ps[0].data = ps[0].data.t().contiguous().t()


def _data_transposed_in_its_place(optimizer, ps, number):
    ps[0].data = ps[0].data.t()


def _data_swapped_between(optimizer, ps, number):
    ps[0].data, ps[2].data = ps[2].data, ps[0].data


def _state_replaced(optimizer, ps, number):
    optimizer.state[ps[0]]["average"] = torch.full_like(ps[0], 0.25)


def _state_of_another_dtype(optimizer, ps, number):
    state = optimizer.state[ps[0]]
    state["average"] = state["average"].double()


def _state_transposed_in_its_place(optimizer, ps, number):
    state = optimizer.state[ps[0]]
    state["average"] = state["average"].t()


def _state_written(optimizer, ps, number):
    optimizer.state[ps[0]]["average"].fill_(number)


def _state_object_replaced(optimizer, ps, number):
    optimizer.state[ps[0]] = {k: v.clone() for k, v in optimizer.state[ps[0]].items()}


def _state_removed(optimizer, ps, number):
    optimizer.state.pop(ps[0], None)


def _state_cleared(optimizer, ps, number):
    optimizer.state.clear()


def _count_written(optimizer, ps, number):
    optimizer.state[ps[0]]["step"].fill_(10 * number)


def _count_replaced(optimizer, ps, number):
    optimizer.state[ps[0]]["step"] = torch.tensor(10.0 * number)


def _count_added_to(optimizer, ps, number):
    optimizer.state[ps[1]]["step"] += 2


def _count_is_an_integer_tensor(optimizer, ps, number):
    optimizer.state[ps[0]]["step"] = torch.tensor(10 * number)


def _count_is_double(optimizer, ps, number):
    optimizer.state[ps[0]]["step"] = torch.tensor(10.0 * number, dtype=torch.float64)


def _count_is_a_number(optimizer, ps, number):
    optimizer.state[ps[0]]["step"] = 10 * number


def _group_option_added(optimizer, ps, number):
    optimizer.param_groups[0]["maximize"] = number == 4


def _group_split(optimizer, ps, number):
    if number == 4:
        moved = optimizer.param_groups[0]["params"].pop()
        optimizer.add_param_group({"params": [moved], "lr": 0.7})


def _group_shortened(optimizer, ps, number):
    if number == 4:
        optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0))


def _loaded(optimizer, ps, number):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _parameter_unsettled(optimizer, ps, number):
    ps[1].requires_grad_(number == 4)


CHANGES = [
    *(_grad_transposed, _grad_is_double, _grad_is_half, _grad_strided, _grad_expanded, _grad_once_missing),
    *(_grads_all_missing, _grad_written_in_place, _data_swapped, _data_of_another_layout),
    *(_data_transposed_in_its_place, _data_swapped_between, _state_replaced, _state_of_another_dtype),
    *(_state_transposed_in_its_place, _state_written, _state_object_replaced, _state_removed, _state_cleared),
    *(_count_written, _count_replaced, _count_added_to, _count_is_an_integer_tensor, _count_is_double),
    *(_count_is_a_number, _group_option_added, _group_split, _group_shortened, _loaded, _parameter_unsettled),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_"))
def test_change_in_the_middle_of_training_is_seen(change):
    optimizer, plain = changed(change)
    assert same_state(optimizer, plain)


def test_sparse_gradient_in_the_middle_of_training_is_taken_where_the_rule_takes_it():
    ps, qs = helpers.params([(6, 2)], torch.float32), helpers.params([(6, 2)], torch.float32)
    optimizer, plain = SGD(ps, lr=0.1), SGD(qs, lr=0.1, **SINGLE)
    seen = []
    for number, (grad,) in enumerate(helpers.gradients(ps, 5)):
        row = [grad.relu().to_sparse() if number in (2, 3) else grad]
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
        seen += readers(optimizer)
        assert same(helpers.values(ps), helpers.values(qs))
    assert seen == ["fused", "fused", "single", "single", "fused"]


def test_sparse_gradient_where_the_rule_takes_none_is_refused_and_nothing_has_moved():
    ps = helpers.params([(6, 2), (4,)], torch.float32)
    optimizer = Adam(ps, fused=True)
    rows = helpers.gradients(ps, 3)
    helpers.run(optimizer, ps, rows)
    before = helpers.values(ps)
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        helpers.step(optimizer, ps, [rows[0][0].to_sparse(), rows[0][1]])
    assert same(helpers.values(ps), before)
    assert [s["step"].item() for s in optimizer.state.values()] == [3, 3]


@pytest.mark.parametrize("cls", [SGD, Plain])
def test_parameter_that_became_shorter_in_its_place_is_not_stepped_beyond_its_end(cls):
    memory, tail = torch.ones(10, 3), torch.full((10, 3), 2.0)
    p = Parameter(memory)
    optimizer = cls([p], lr=0.1)
    p.grad = tail.clone()
    optimizer.step()
    p.data = p.data[:4]
    # The gradient has memory behind its end, so that reading too far does no harm here.
    p.grad = tail[:4]
    before = memory.clone()
    try:
        optimizer.step()
    except RuntimeError:
        assert cls is Plain  # The state has the old shape, and that is an error in torch, too.
    assert same(memory[4:], before[4:])


def test_gradient_that_became_shorter_is_not_read_beyond_its_end():
    memory = torch.ones(10)
    p = Parameter(memory)
    optimizer = SGD([p], lr=0.1)
    p.grad = torch.ones(10)
    optimizer.step()
    p.grad.data = torch.ones(10)[:4]
    before = memory.clone()
    with pytest.raises(RuntimeError, match=r"size|shape"):
        optimizer.step()
    assert same(memory, before)


def test_lazily_negated_gradient_is_seen():
    p, q = Parameter(torch.tensor(1.0)), Parameter(torch.tensor(1.0))
    optimizer, plain = SGD([p], lr=0.1), SGD([q], lr=0.1, **SINGLE)
    grads = [torch.tensor(2.0), torch.tensor(2.0), torch.tensor(1 + 2j).conj().imag]
    assert grads[2].is_neg()
    for grad in grads:
        p.grad = q.grad = grad
        optimizer.step()
        plain.step()
    assert same(p, q)


def test_lazily_conjugated_gradient_is_seen():
    ps, qs = helpers.params([(4,)], torch.complex64), helpers.params([(4,)], torch.complex64)
    optimizer, plain = SGD(ps, lr=0.1), SGD(qs, lr=0.1, **SINGLE)
    for grad in (torch.full((4,), 1 + 2j), torch.full((4,), 1 + 2j), torch.full((4,), 1 + 2j).conj()):
        ps[0].grad = qs[0].grad = grad
        optimizer.step()
        plain.step()
    assert same(ps[0], qs[0])


def test_missing_gradient_gives_a_count_of_its_own():
    ps, optimizer, qs, plain = pair(Plain)
    rows = [[g if n % (i + 1) == 0 else None for i, g in enumerate(r)] for n, r in enumerate(helpers.gradients(ps, 7))]
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    assert [int(optimizer.state[p]["step"]) for p in ps] == [7, 4, 3, 2]
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, plain)


def test_missing_gradients_recompile_nothing(sources):
    ps = helpers.params(dtype=torch.float32)
    rows = [[g if (n + i) % 3 else None for i, g in enumerate(r)] for n, r in enumerate(helpers.gradients(ps, 9))]
    optimizer = helpers.run(Plain(ps, fused=True), ps, rows)
    assert len(set(sources)) == 1
    assert sum(e.launches for e in optimizer.explain().entries) == 1


# ## Where parameters lie


def test_parameters_that_share_memory_step_one_after_the_other():
    def tied():
        memory = torch.linspace(-1, 1, 12)
        return [Parameter(memory), Parameter(memory)]

    ps, qs = tied(), tied()
    assert ps[0].data_ptr() == ps[1].data_ptr()
    rows = helpers.gradients(ps, 4)
    optimizer = helpers.run(AdamW(ps, lr=0.1), ps, rows)
    helpers.run(AdamW(qs, lr=0.1, **SINGLE), qs, rows)
    assert readers(optimizer) == ["single"]
    assert "share memory" in optimizer.explain().entries[0].reason
    assert same(helpers.values(ps), helpers.values(qs))
    others = tied()
    with pytest.raises(RuntimeError, match="share memory"):
        helpers.step(AdamW(others, fused=True), others, rows[0])


@pytest.mark.parametrize("size", [12, BIG])
def test_parameters_that_overlap_in_part_step_one_after_the_other(size, threads):
    threads(2)

    class Shrink(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.mul_(0.5).add_(grad)

    def overlapping():
        memory = torch.linspace(-1, 1, size)
        return [Parameter(memory[: size // 4 * 3]), Parameter(memory[size // 4 :])]

    ps, qs = overlapping(), overlapping()
    rows = helpers.gradients(ps, 3)
    helpers.run(Shrink(ps, {}, lr=1.0), ps, rows)
    helpers.run(Shrink(qs, SINGLE, lr=1.0), qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameter_that_is_there_twice_steps_twice():
    ps, qs = helpers.params([(5,)], torch.float32), helpers.params([(5,)], torch.float32)
    rows = helpers.gradients(ps, 4)
    optimizer = helpers.run(Plain([ps[0], ps[0]]), ps, rows)
    plain = helpers.run(Plain([qs[0], qs[0]], **SINGLE), qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))
    assert optimizer.state[ps[0]]["step"].item() == plain.state[qs[0]]["step"].item() == 8


LAYOUTS = {
    "empty": lambda: torch.ones(0),
    "empty with a size": lambda: torch.ones(3, 0, 2),
    "0-dim": lambda: torch.tensor(0.7),
    "one element": lambda: torch.ones(1, 1, 1),
    "channels_last": lambda: torch.linspace(-1, 1, 120).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.linspace(-1, 1, 12).view(3, 4).t(),
    "permuted": lambda: torch.linspace(-1, 1, 24).view(2, 3, 4).permute(1, 2, 0),
    "dimension of one": lambda: torch.linspace(-1, 1, 12).view(3, 4).unsqueeze(1).transpose(0, 1),
    "at an offset": lambda: torch.linspace(-1, 1, 13)[1:],
}
GAPS = {
    "strided": lambda: torch.linspace(-1, 1, 24)[::2],
    "columns": lambda: torch.linspace(-1, 1, 24).view(4, 6)[:, :3],
    "expanded": lambda: torch.ones(1, 3).expand(1, 3)[:, ::2],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_dense_layout_is_fused(name):
    made = Parameter(LAYOUTS[name]())
    optimizer = assert_same_path(Plain, ps=[made, Parameter(torch.ones(3))])
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["average"].stride() == made.stride() or made.numel() == 0 or 1 in made.shape


@pytest.mark.parametrize("name", GAPS)
def test_layout_with_gaps_takes_the_next_reader(name):
    ps = [Parameter(GAPS[name]()), Parameter(torch.ones(3))]
    qs = [Parameter(GAPS[name]()), Parameter(torch.ones(3))]
    rows = helpers.gradients(ps, 4)
    optimizer = helpers.run(Plain(ps), ps, rows)
    helpers.run(Plain(qs, **SINGLE), qs, rows)
    assert sorted(readers(optimizer)) == ["foreach", "fused"]
    assert same(helpers.values(ps), helpers.values(qs))


def test_channels_last_gradient_of_a_contiguous_parameter_is_right():
    ps, qs = helpers.params([(2, 3, 4, 5)], torch.float32), helpers.params([(2, 3, 4, 5)], torch.float32)
    optimizer, plain = Plain(ps), Plain(qs, **SINGLE)
    for number, (grad,) in enumerate(helpers.gradients(ps, 4)):
        ps[0].grad = grad.to(memory_format=torch.channels_last) if number % 2 else grad.clone()
        qs[0].grad = grad.clone()
        optimizer.step()
        plain.step()
    assert same(ps[0], qs[0])


# ## Threads, neighbours and memory


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Thorough(GenericAdaptiveOptimizer):
    """Operations of every kind, so that a difference between vector and remainder loops would be seen."""

    def init_state(self, state, group, param):
        state["step"] = 0
        state["m"], state["v"] = torch.zeros_like(param), torch.zeros_like(param)

    def step_param(self, state, group, grad, param):
        m, v = state["m"], state["v"]
        m.lerp_(grad, 0.1)
        v.mul_(0.99).addcmul_(grad, grad, value=0.01)
        x = m / v.sqrt().add_(1e-8)
        x = torch.where(x > 0, x.tanh(), x.exp().log()).div(3.0).clamp(-2, 2)
        param.mul_(0.999).addcdiv_(x, v.add(1.0), value=-0.1).sub_(x.abs().pow(1.3), alpha=0.01)


def run_big(ps, rows):
    helpers.run(Thorough(ps, FUSED, lr=1.0), ps, rows)
    return helpers.values(ps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_number_of_threads_changes_no_bit(dtype, threads):
    shapes = [(BIG,), (), (7, 11), (3,), (BIG // 3, 2)]
    ps = helpers.params(shapes, dtype)
    rows = helpers.gradients(ps, 3)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(run_big(helpers.copies(ps), rows))
    assert all(same(results[0], other) for other in results[1:])


def test_change_of_the_number_of_threads_between_steps_changes_no_bit(threads):
    ps = helpers.params([(BIG,)], torch.float32)
    qs = helpers.copies(ps)
    rows = helpers.gradients(ps, 4)
    one, two = Thorough(ps, FUSED, lr=1.0), Thorough(qs, FUSED, lr=1.0)
    for row, count in zip(rows, (2, 1, 3, 2), strict=True):
        threads(count)
        helpers.step(one, ps, row)
        threads(1)
        helpers.step(two, qs, row)
    assert same(ps[0], qs[0])


def test_neighbours_change_no_bit():
    shapes = [(100,), (BIG,), (3,), (1000,), (17,)]
    together = helpers.params(shapes, torch.float32)
    alone = helpers.copies(together)
    rows = helpers.gradients(together, 3)
    result = run_big(together, rows)
    for i, p in enumerate(alone):
        assert same(run_big([p], [[row[i]] for row in rows])[0], result[i])


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [7, 1000, BIG])
def test_alignment_in_memory_changes_no_bit(size, offset):
    def moved(tensor, by):
        memory = torch.empty(size + by, dtype=tensor.dtype)
        memory[by:] = tensor.detach()
        return memory[by:]

    (aligned,) = helpers.params([(size,)], torch.float32)
    other = Parameter(moved(aligned, offset))
    rows = helpers.gradients([aligned], 3)
    want = run_big([aligned], rows)
    optimizer = Thorough([other], FUSED, lr=1.0)
    for n, (grad,) in enumerate(rows):
        other.grad = moved(grad, (offset * n) % 7)
        optimizer.step()
    assert same(other, want[0])


def test_two_optimizers_in_two_threads_step_right():
    sets = [helpers.params([(BIG,), (5,)], torch.float32, seed=s) for s in (1, 2, 3)]
    alone = [helpers.copies(ps) for ps in sets]
    rows = [helpers.gradients(ps, 15, seed=s) for s, ps in enumerate(sets)]
    errors = []

    def work(ps, rows):
        try:
            helpers.run(Plain(ps, fused=True), ps, rows)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(ps, r)) for ps, r in zip(sets, rows, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert errors == []
    for ps, qs, r in zip(sets, alone, rows, strict=True):
        helpers.run(Plain(qs, **SINGLE), qs, r)
        assert same(helpers.values(ps), helpers.values(qs))


FORK = """
import os, sys, torch
from optimizers import Adam
def steps(optimizer, p, *numbers):
    for i in numbers:
        p.grad = torch.full_like(p, 0.5 + i)
        optimizer.step()
p = torch.nn.Parameter(torch.ones(SIZE))
q = torch.nn.Parameter(torch.ones(SIZE))
optimizer, other = Adam([p], fused=True), Adam([q], fused=True)
steps(optimizer, p, 0, 1, 2)
steps(other, q, 0, 1, 2, 3, 4, 5)
torch.ones(10**6).add_(1).exp_()
child = os.fork()
if child == 0:
    steps(optimizer, p, 3, 4, 5)
    os._exit(0 if torch.equal(p, q) else 3)
steps(optimizer, p, 3, 4, 5)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or (0 if torch.equal(p, q) else 4))
""".replace("SIZE", str(BIG))


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_forked_child_steps_and_does_not_hang():
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], cwd=ROOT, timeout=60)
    assert done.returncode == 0


def allocated(function):
    """The bytes of the blocks that torch allocates while a function runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in events if e.nbytes() > 0]


@all_rules
def test_fused_step_allocates_no_memory_for_its_elements(rule):
    ps = helpers.params([(4000,), (50, 40)], torch.float32)
    optimizer = rule.build(ps, "fused")
    rows = helpers.gradients(ps, 3)
    helpers.run(optimizer, ps, rows)
    optimizer.step()
    assert max(allocated(optimizer.step), default=0) < 1000
    assert max(allocated(lambda: ps[0].detach() + 1)) >= 16000


# ## Special values, autograd and AMP


@all_rules
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-38, 1e25])
def test_special_gradient_moves_what_it_moves_plainly(rule, value):
    ps, qs = helpers.params([(40,)], torch.float32), helpers.params([(40,)], torch.float32)
    optimizer, plain = rule.build(ps, "fused"), rule.build(qs, "single")
    start, rows = helpers.values(ps), helpers.gradients(ps, 4)
    rows[1][0][::5] = value
    rows[2][0][3::7] = -value
    helpers.run(optimizer, ps, rows)
    helpers.run(plain, qs, rows)
    for got, want in [(ps[0], qs[0]), *zip(_tensors(optimizer, ps[0]), _tensors(plain, qs[0]), strict=True)]:
        got, want = got.detach(), want.detach()
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isposinf(), want.isposinf())
        assert torch.equal(got.isneginf(), want.isneginf())
    tame = qs[0].detach().isfinite()
    assert tame.any()
    assert_within(2 * 4 + 2, [ps[0].detach()[tame]], [qs[0].detach()[tame]], [start[0][tame]])


def _tensors(optimizer, p):
    return [v for k, v in sorted(optimizer.state.get(p, {}).items()) if isinstance(v, Tensor) and v.numel() > 1]


@all_classes
def test_backward_through_values_that_a_step_has_changed_is_an_error(rule):
    ps = helpers.params([(4,)], torch.float32)
    optimizer = rule.build(ps, "fused")
    helpers.run(optimizer, ps, helpers.gradients(ps, 3))
    version = ps[0]._version
    loss = (ps[0] * ps[0]).sum()
    ps[0].grad = torch.ones(4)
    optimizer.step()
    assert ps[0]._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_versions_of_states_advance():
    ps = helpers.params([(4,)], torch.float32)
    optimizer = helpers.run(Adam(ps, fused=True), ps, helpers.gradients(ps, 2))
    before = optimizer.state[ps[0]]["exp_avg"]._version
    helpers.run(optimizer, ps, helpers.gradients(ps, 1))
    assert optimizer.state[ps[0]]["exp_avg"]._version > before


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)


@all_rules
def test_scaled_gradients_give_what_gradients_give(rule):
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    scaled, optimizer, amp = rule.build(ps, "fused"), rule.build(qs, "fused"), scaler()
    for row in helpers.gradients(ps, 4):
        amp.scale(torch.ones(()))
        for p, g in zip(ps, row, strict=True):
            p.grad = g * 1024.0
        before = [p.grad.clone() for p in ps]
        amp.step(scaled)
        amp.update()
        assert same([p.grad for p in ps], before)
        helpers.step(optimizer, qs, row)
    assert set(readers(scaled)) == {"fused"}
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(scaled, optimizer)


@all_rules
def test_gradient_that_overflowed_skips_the_step_bit_for_bit(rule):
    ps = helpers.params(dtype=torch.float32)
    optimizer, amp = rule.build(ps, "fused"), scaler()
    rows = [[g * 1024.0 for g in row] for row in helpers.gradients(ps, 4)]
    rows[2][1][0] = float("inf")
    amp.scale(torch.ones(()))
    for number, row in enumerate(rows):
        before, state = helpers.values(ps), copy.deepcopy(optimizer.state_dict()["state"])
        for p, g in zip(ps, row, strict=True):
            p.grad = g.clone()
        amp.step(optimizer)
        amp.update()
        now = optimizer.state_dict()["state"]
        moved = not same(helpers.values(ps), before)
        # Some rules move nothing in their first steps, but they count them.
        changed = now.keys() != state.keys() or not all(same(now[i][k], state[i][k]) for i in now for k in now[i])
        assert (moved or changed) == (number != 2)
        if number == 2:
            rows[3] = [g * 0.5 for g in rows[3]]
    assert amp.get_scale() == 512.0


def test_first_step_that_is_skipped_makes_no_state():
    ps = helpers.params(dtype=torch.float32)
    optimizer, amp = Adam(ps, fused=True), scaler()
    amp.scale(torch.ones(()))
    for p in ps:
        p.grad = torch.full_like(p, float("nan"))
    amp.step(optimizer)
    assert optimizer.state_dict()["state"] == {}


def test_gradients_unscaled_by_hand_are_not_unscaled_again():
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    scaled, optimizer, amp = Adam(ps, fused=True), Adam(qs, fused=True), scaler()
    amp.scale(torch.ones(()))
    (row,) = helpers.gradients(ps, 1)
    for p, g in zip(ps, row, strict=True):
        p.grad = g * 1024.0
    amp.unscale_(scaled)
    amp.step(scaled)
    helpers.step(optimizer, qs, row)
    assert same(helpers.values(ps), helpers.values(qs))


# ## Surroundings


@all_classes
def test_hooks_and_the_profiler_label_are_as_in_torch(rule):
    ps = helpers.params(dtype=torch.float32)
    optimizer = rule.build(ps, "fused")
    helpers.run(optimizer, ps, helpers.gradients(ps, 2))
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert calls == ["before", "after"]
    assert [e.key for e in profile.key_averages() if "Optimizer.step#" in e.key] == [
        f"Optimizer.step#{type(optimizer).__name__}.step"
    ]


@all_rules
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copy_in_the_middle_of_training_goes_on_bit_for_bit(rule, how):
    ps = helpers.params(dtype=torch.float32)
    optimizer = rule.build(ps, "fused")
    rows = helpers.gradients(ps, 6)
    helpers.run(optimizer, ps, rows[:3])
    qs, twin = how((ps, optimizer))
    # An optimizer of torch drops what it doesn't know, so the copy is told its parameters.
    assert [q is p for q, p in zip(twin.param_groups[0]["params"], qs, strict=True)] == [True] * len(qs)
    helpers.run(optimizer, ps, rows[3:])
    helpers.run(twin, qs, rows[3:])
    assert set(readers(twin)) == {"fused"}
    assert same(helpers.values(ps), helpers.values(qs))
    assert same_state(optimizer, twin)


def test_step_under_inference_of_grad_mode_is_the_same():
    ps, qs = helpers.params(dtype=torch.float32), helpers.params(dtype=torch.float32)
    rows = helpers.gradients(ps, 3)
    helpers.run(Plain(ps, fused=True), ps, rows)
    with torch.no_grad():
        helpers.run(Plain(qs, fused=True), qs, rows)
    assert same(helpers.values(ps), helpers.values(qs))


def test_closure_is_called_once_with_gradients_enabled():
    ps = helpers.params([(3,)], torch.float32)
    optimizer = Plain(ps, fused=True)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (ps[0] ** 2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(3)]
    assert calls == [True] * 3
    assert losses[2] < losses[1] < losses[0]


def test_optimizer_that_goes_away_takes_its_memory_with_it():
    import gc
    import weakref

    ps = helpers.params([(4,)], torch.float32)
    optimizer = helpers.run(RMSprop(ps, fused=True), ps, helpers.gradients(ps, 2))
    gone = [weakref.ref(ps[0]), weakref.ref(optimizer.state[ps[0]]["square_avg"])]
    del ps, optimizer
    gc.collect()
    assert [g() for g in gone] == [None, None]


# ## The repository


SOURCES = sorted((ROOT / "optimizers").rglob("*.py"))


def test_list_operations_of_torch_are_named_in_one_file():
    naming = [p.name for p in SOURCES if "_foreach" + "_" in p.read_text(encoding="utf-8")]
    assert naming == ["tensor_list.py"]


def test_no_engine_names_a_rule():
    rules = {node.name for path in (ROOT / "optimizers").glob("*.py") for node in ast.parse(path.read_text()).body
             if isinstance(node, ast.ClassDef)} - {"GenericAdaptiveOptimizer", "WeightDecay"}  # fmt: skip
    modules = {p.stem for p in (ROOT / "optimizers").glob("*.py")}
    assert {"Adam", "SGD", "RMSprop"} <= rules
    for path in (ROOT / "optimizers" / "engines").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        imports = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imports |= {a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs]
        words = set(itertools.chain.from_iterable(re.findall(r"\w+", s) for s in strings if isinstance(s, str)))
        assert not rules & (names | imports | words), path.name
        assert not {f"optimizers.{m}" for m in modules} & imports, path.name


class LooksAtTheParameter(Adam):
    """Its state depends on the values of the parameter, which only a real tensor has."""

    def init_state(self, state, group, param):
        super().init_state(state, group, param)
        state["exp_avg"].fill_(param.mean().item())


def test_init_state_that_looks_at_values_is_given_a_real_tensor():
    p, q = (torch.nn.Parameter(torch.linspace(-1, 2, 6)) for _ in range(2))
    optimizer, other = LooksAtTheParameter([p]), LooksAtTheParameter([q])
    assert readers(optimizer) == ["fused"]
    assert not optimizer.state
    p.grad = torch.ones(6)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    assert same(other.state[q]["exp_avg"], optimizer.state[p]["exp_avg"])
