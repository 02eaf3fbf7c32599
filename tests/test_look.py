"""
What is seen before a step: whatever has changed since the last one, by the look in C and by the look in Python.

Each optimizer has a twin that runs the plain reader, which asks every tensor for everything at each step. What happens
between two steps happens to both, and then they must agree.
"""

import copy
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from array import array
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimizers import SGD, Adam
from optimizers.engines import c_look, compiler, look
from optimizers.engines.compiler import NoCompiler
from tests import helpers
from tests.helpers import assert_within, same
from tests.rules import READERS, ULPS_PER_STEP

ROOT = Path(__file__).parent.parent
LOOKS = ["c", "python"]
RULES = {"sgd": partial(SGD, lr=0.1, momentum=0.9), "adam": partial(Adam, lr=0.01)}
#: Those whose kernel gives the bits of the plain reader.
EXACT = {"sgd"}
#: A launch needs a step that makes the states and one that notes where they lie. From then on it only looks.
SETTLED = 4

all_rules = pytest.mark.parametrize("rule", RULES)


def _can_ask():
    try:
        c_look.of_torch()
    except NoCompiler:
        return False
    return True


needs_c = pytest.mark.skipif(not _can_ask(), reason="this torch can't be asked from C")
all_looks = pytest.mark.parametrize(
    "kind", [pytest.param("c", marks=needs_c), pytest.param("python", marks=pytest.mark.slow)]
)


@contextmanager
def looking(kind):
    """All that is made in here is looked at in C, or by Python."""

    def refuse(*_):
        raise NoCompiler("Python shall look")

    with pytest.MonkeyPatch.context() as patch:
        if kind == "python":
            patch.setattr(look, "CLook", refuse)
        yield


@pytest.fixture(params=[pytest.param("c", marks=needs_c), pytest.param("python", marks=pytest.mark.slow)])
def kind(request):
    with looking(request.param):
        yield request.param


def looks_of(optimizer):
    """What looks at the tensors of an optimizer: the kinds of all its launches."""
    kinds = {c_look.CLook: "c", look.Look: "python"}
    launches = [launch for job in optimizer._stepper._plan.jobs for launch in getattr(job, "launches", ())]
    return [kinds[type(launch.look)] for launch in launches]


def reader_of(optimizer):
    return {e.reader for e in optimizer.explain().entries}


class Twins:
    """The same parameters for an optimizer that steps by kernels, and for one that steps plainly."""

    def __init__(self, rule, ps, arrange=list, **options):
        self.exact, self.steps, self.refused = rule in EXACT, 0, False
        self.ps, self.qs = ps, helpers.copies(ps)
        self.optimizer = RULES[rule](arrange(self.ps), **options)
        self.plain = RULES[rule](arrange(self.qs), **READERS["single"])
        self.sides, self._old = [(self.ps, self.optimizer), (self.qs, self.plain)], []

    def both(self, change):
        for ps, optimizer in self.sides:
            change(ps, optimizer)

    def give_gradients(self):
        """New ones, laid out like their parameters, as autograd makes them."""
        self.steps += 1
        (row,) = helpers.gradients(self.ps, 1, seed=self.steps)
        for ps, _ in self.sides:
            for p, g in zip(ps, row, strict=True):
                p.grad = torch.empty_like(p, requires_grad=False).copy_(g)

    def step(self, change=None):
        """One step of both, after a change. Where the plain one is refused the other must be."""
        self.give_gradients()
        if change is not None:
            # What lies somewhere now may be written there by a step that does not see the change: to no other's harm.
            moments = (t for s in _states(self.optimizer) for t in s.values())
            self._old += [t.detach() for t in (*self.ps, *moments) if isinstance(t, torch.Tensor)]
            self.both(change)
        error = _error_of(self.plain)
        if error is None:
            self.optimizer.step()
            self.assert_alike()
        else:
            self.refused = True
            with pytest.raises(type(error)):
                self.optimizer.step()

    def settle(self, kind=None, known=False):
        """Steps after which a launch does nothing but look."""
        for _ in range(SETTLED):
            self.step()
            if known:
                self.both(lambda ps, optimizer: optimizer.state)
        if kind is not None:
            assert set(looks_of(self.optimizer)) == {kind}
        return self

    def assert_alike(self):
        got, want = (_states(o) for o in (self.optimizer, self.plain))
        assert [list(s) for s in got] == [list(s) for s in want]
        self._compare(self.ps, self.qs)
        for g, w in zip(got, want, strict=True):
            # A count gets its form when its parameter steps.
            assert float(g.get("step", 0)) == float(w.get("step", 0))
            names = [name for name in w if name != "step"]
            self._compare([g[name] for name in names], [w[name] for name in names], several=32)

    def _compare(self, got, want, several=1):
        got, want = helpers.values(got), helpers.values(want)
        if self.exact:
            assert same(got, want)
        else:
            assert_within(several * ULPS_PER_STEP * self.steps, got, want, want)


def _error_of(optimizer):
    try:
        optimizer.step()
    except Exception as error:
        return error
    return None


def _states(optimizer):
    """The states, without the optimizer's knowing that they are known."""
    return list(vars(optimizer)["state"].values())


# ## Gradients and parameters

MATRIX, VECTOR, SCALAR, IMAGE, SINGLE, EMPTY, DEEP = range(7)
SHAPES = [(4, 4), (5,), (), (2, 3, 2, 2), (1,), (0, 2), (2, 1, 2, 1, 2)]


def _transposed(tensor):
    """The same values, in the memory of a transpose."""
    return tensor.mT.contiguous().mT


def _negated(grad):
    """The same values, as a view of others that is negated later."""
    return torch.complex(torch.zeros_like(grad), -grad).conj().imag


def _give(index, change):
    """A change that gives a parameter a gradient made of its present one."""

    def changed(ps, optimizer):
        ps[index].grad = change(ps[index].grad)

    return changed


def _take(*indices):
    def changed(ps, optimizer):
        for index in indices:
            ps[index].grad = None

    return changed


def _grad_of_another_dtype(ps, optimizer):
    if not hasattr(ps[MATRIX], "grad_dtype"):
        pytest.skip("gradients of this torch have the dtype of the parameter")
    ps[MATRIX].grad_dtype = None
    ps[MATRIX].grad = ps[MATRIX].grad.float()


def _grad_of_another_dtype_in_its_place(ps, optimizer):
    ps[MATRIX].grad.data = ps[MATRIX].grad.data.float()


def _grad_of_another_shape(ps, optimizer):
    ps[IMAGE].grad.data = ps[IMAGE].grad.data.view(3, 2, 2, 2)


def _grad_of_a_shape_that_fits(ps, optimizer):
    ps[MATRIX].grad.data = ps[MATRIX].grad.data.view(1, 4, 4)


def _grad_written_in_place(ps, optimizer):
    ps[MATRIX].grad.mul_(-2.0)


def _grad_shared(ps, optimizer):
    ps[MATRIX].grad = ps[MATRIX].detach()


def _grad_negated_without_gaps(ps, optimizer):
    """No operation makes one but this, which names the strides itself."""
    doubled = torch.complex(ps[VECTOR].grad, -ps[VECTOR].grad)
    ps[VECTOR].grad = doubled.conj().imag.as_strided((5,), (1,))
    assert ps[VECTOR].grad.is_neg()


GRADIENTS = {
    "one missing": _take(VECTOR),
    "first missing": _take(0),
    "last missing": _take(-1),
    "two missing": _take(SCALAR, MATRIX),
    "all but one missing": _take(*range(1, len(SHAPES))),
    "all missing": _take(*range(len(SHAPES))),
    "sparse": _give(MATRIX, lambda g: g.relu().to_sparse()),
    "another dtype": _grad_of_another_dtype,
    "another dtype in its place": _grad_of_another_dtype_in_its_place,
    "another shape in its place": _grad_of_another_shape,
    "a shape that fits in its place": _grad_of_a_shape_that_fits,
    "transposed": _give(MATRIX, _transposed),
    "channels last": _give(IMAGE, lambda g: g.to(memory_format=torch.channels_last)),
    "strided": _give(MATRIX, lambda g: torch.stack([g, g + 1], dim=-1)[..., 0]),
    "a slice": _give(MATRIX, lambda g: torch.cat([g, g], dim=1)[:, :4]),
    "at an offset": _give(VECTOR, lambda g: torch.cat([g, g])[3:8]),
    "another stride where there is one": _give(DEEP, lambda g: g.as_strided(g.shape, (4, 99, 2, 77, 1))),
    "another stride of one element": _give(SINGLE, lambda g: g.as_strided((1,), (7,))),
    "another stride of no elements": _give(EMPTY, lambda g: g.mT.contiguous().mT),
    "expanded": _give(MATRIX, lambda g: g[:1].expand(4, 4)),
    "expanded from one element": _give(VECTOR, lambda g: g[:1].expand(5)),
    "negated later, of one element": _give(SINGLE, _negated),
    "negated later, of no dimension": _give(SCALAR, _negated),
    "negated later, of more elements": _give(VECTOR, _negated),
    "negated later, without gaps": _grad_negated_without_gaps,
    "written in place": _grad_written_in_place,
    "the parameter itself": _grad_shared,
    "as it was": lambda ps, optimizer: None,
}


def _set_data(index, change):
    def changed(ps, optimizer):
        ps[index].data = change(ps[index].data)

    return changed


@torch.no_grad()
def _transposed_in_its_place(ps, optimizer):
    ps[MATRIX].t_()


@torch.no_grad()
def _given_another_storage(ps, optimizer):
    ps[MATRIX].set_(ps[MATRIX].detach().clone())


@torch.no_grad()
def _given_another_dimension(ps, optimizer):
    ps[MATRIX].unsqueeze_(0)


def _swapped(ps, optimizer):
    """As `torch.__future__.set_swap_module_params_on_conversion` does. What it was before goes away."""
    other = torch.nn.Parameter(ps[MATRIX].detach() * 2)
    other.grad = ps[MATRIX].grad.clone()
    torch.utils.swap_tensors(ps[MATRIX], other)
    del other


def _shared_with_other_processes(ps, optimizer):
    for p in ps:
        p.share_memory_()


def _exchanged(ps, optimizer):
    ps[SINGLE].data, ps[SCALAR].data = ps[SCALAR].data.view(1), ps[SINGLE].data.view(())


def _added(ps, optimizer):
    """A copy of the first one joins, in a group of its own."""
    ps.append(torch.nn.Parameter(ps[0].detach().clone()))
    ps[-1].grad = ps[0].grad.clone() if ps[0].grad is not None else torch.ones_like(ps[0])
    optimizer.add_param_group({"params": [ps[-1]], "lr": 0.05})


def _lazily_cloned(ps, optimizer):
    """The two have one memory until one of them is written. The clone is kept where it goes away with the optimizer."""
    clones = vars(optimizer).setdefault("clones", [])
    clones.append((torch._lazy_clone(ps[MATRIX].detach()), ps[MATRIX].detach().clone()))
    assert all(same(clone, value) for clone, value in clones)


PARAMETERS = {
    "other memory": _set_data(MATRIX, torch.clone),
    "other memory and values": _set_data(VECTOR, lambda d: d * -2),
    "other memory, of no dimension": _set_data(SCALAR, torch.clone),
    "other memory, of five dimensions": _set_data(DEEP, torch.clone),
    "other memory, of no elements": _set_data(EMPTY, torch.clone),
    "float32": _set_data(MATRIX, torch.Tensor.float),
    "bfloat16": _set_data(MATRIX, torch.Tensor.bfloat16),
    "transposed": _set_data(MATRIX, _transposed),
    "channels last": _set_data(IMAGE, lambda d: d.to(memory_format=torch.channels_last)),
    "with gaps": _set_data(VECTOR, lambda d: torch.stack([d, d], dim=-1)[..., 0]),
    "transposed in its place": _transposed_in_its_place,
    "data transposed in its place": _set_data(MATRIX, torch.t),
    "shorter in its place": _set_data(VECTOR, lambda d: d[:2]),
    "of a shape that fits in its place": _set_data(VECTOR, lambda d: d.view(1, 5)),
    "longer": _set_data(VECTOR, lambda d: torch.cat([d, d])),
    "another storage": _given_another_storage,
    "another dimension in its place": _given_another_dimension,
    "swapped": _swapped,
    "shared with other processes": _shared_with_other_processes,
    "exchanged": _exchanged,
    "added": _added,
    "copied when it is written": _lazily_cloned,
}


def assert_change_is_seen(rule, change, kind):
    """
    Steps, two with a change before them, and steps as before. With one of the rules the states are known, so that they
    are looked at, too.
    """
    twins = Twins(rule, helpers.params(SHAPES)).settle(kind, known=rule == "adam")
    assert reader_of(twins.optimizer) == {"fused"}
    for happening in (change, change, None, None, None):
        twins.step(happening)
        if twins.refused:
            return
    assert not any(p.grad is None for p in twins.ps)


@pytest.mark.parametrize("name", GRADIENTS)
@all_rules
def test_change_of_a_gradient_is_seen(kind, rule, name):
    assert_change_is_seen(rule, GRADIENTS[name], kind)


#: All that the changes are about, but for the two that are always there.
_take_most = _take(*range(5))


@pytest.mark.parametrize("name", GRADIENTS)
@all_rules
def test_gradient_that_comes_back_otherwise_is_seen(kind, rule, name):
    """While it was missing all was laid out anew, so nothing is known of it."""
    twins = Twins(rule, helpers.params(SHAPES))
    twins.step()
    for _ in range(SETTLED):
        twins.step(_take_most)
    twins.step(GRADIENTS[name])
    if not twins.refused:
        twins.step()


@pytest.mark.parametrize("absent", [False, True], ids=["gradient there", "gradient missing"])
@pytest.mark.parametrize("name", PARAMETERS)
@all_rules
def test_change_of_a_parameter_is_seen(kind, rule, name, absent):
    def change(ps, optimizer):
        PARAMETERS[name](ps, optimizer)
        if absent:
            _take_most(ps, optimizer)

    if name == "copied when it is written" and not hasattr(torch, "_lazy_clone"):
        pytest.skip("this torch can't copy lazily")
    assert_change_is_seen(rule, change, kind)


@pytest.mark.parametrize("name", ["one missing", "all missing", "transposed", "as it was"])
@all_rules
def test_change_under_a_kernel_that_must_be_is_seen_or_refused(kind, rule, name):
    twins = Twins(rule, helpers.params(SHAPES), fused=True).settle(kind)
    if name != "transposed":
        twins.step(GRADIENTS[name])
        return
    twins.give_gradients()
    twins.both(GRADIENTS[name])
    before = helpers.values(twins.ps)
    with pytest.raises(RuntimeError, match=r"fused=True can't be had: .*strides"):
        twins.optimizer.step()
    assert same(helpers.values(twins.ps), before)


def _as_float16(tensor):
    """The same values in the same memory."""
    values = tensor.detach().clone()
    return tensor.detach().view(torch.float16).copy_(values)


@pytest.mark.parametrize("change", ["parameter", "state"])
def test_memory_that_is_now_of_another_dtype_of_the_same_width_is_seen(kind, change):
    happening = {"parameter": _set_data(0, _as_float16), "state": _in_state(_as_float16)}[change]
    twins = Twins("sgd", helpers.params([(4, 3), (5,)], torch.bfloat16)).settle(kind, known=True)
    twins.step(happening)
    twins.step()


def test_sparse_gradient_is_taken_without_a_state(kind):
    ps, qs = (helpers.params([(6, 2), (3,)], torch.float32) for _ in range(2))
    optimizer, plain = SGD(ps, lr=0.1), SGD(qs, lr=0.1, **READERS["single"])
    seen = []
    for number, row in enumerate(helpers.gradients(ps, 6)):
        row[0] = row[0].relu().to_sparse() if number in (2, 3) else row[0]
        helpers.step(optimizer, ps, row)
        helpers.step(plain, qs, row)
        seen.append(reader_of(optimizer))
        assert same(helpers.values(ps), helpers.values(qs))
    assert [("fused" in s, len(s)) for s in seen] == [(True, n) for n in (1, 1, 2, 2, 1, 1)]


def _conjugated_grad(ps, optimizer):
    ps[0].grad = ps[0].grad.conj()
    assert ps[0].grad.is_conj()


def _conjugated_state(ps, optimizer):
    state = optimizer.state[ps[0]]
    state["momentum_buffer"] = state["momentum_buffer"].conj()


COMPLEX = {
    "gradient": _conjugated_grad,
    "gradient, in other memory": _give(0, lambda g: g.conj().clone().conj()),
    "parameter in its place": _set_data(0, torch.conj),
    "state in its place": _conjugated_state,
}


@pytest.mark.parametrize("name", COMPLEX)
def test_lazily_conjugated_view_is_seen(kind, name):
    twins = Twins("sgd", helpers.params([(4, 3), (5,)], torch.complex64)).settle(kind, known=True)
    twins.step(COMPLEX[name])
    if not twins.refused:
        twins.step()


def test_change_of_complex_tensors_is_seen(kind):
    for name, change in _each_change(1).items():
        if name != "gradient of another dtype":
            twins = Twins("sgd", helpers.params([(4,), (3, 3), ()], torch.complex64)).settle(kind)
            twins.step(change)
            twins.step()


def _steps_with_a_part_of_a_complex_number(place, **options):
    """Where the imaginary part lies, that of the conjugate does, too."""
    number, other = torch.tensor([1 + 2j]), torch.tensor([3 + 4j])
    p = torch.nn.Parameter(number.imag)
    optimizer = SGD([p], lr=0.1, momentum=0.9, **options)
    for t in range(10):
        p.grad = torch.full((1,), 0.5 + t)
        if t == 1:
            optimizer.state[p]["momentum_buffer"] = other.imag
        if t == 6 and place == "parameter":
            p.data = number.conj().imag
        if t == 6 and place == "state":
            optimizer.state[p]["momentum_buffer"] = other.conj().imag
        optimizer.step()
    return number, other


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("options", [{}, {"foreach": False}], ids=["default", "foreach=False"])
@pytest.mark.parametrize("place", ["parameter", "state"])
def test_memory_of_one_element_that_is_now_negated_later_is_seen(place, options):
    """By default torch, too, steps such a parameter: its lists don't take it, but its loop does."""
    got = _steps_with_a_part_of_a_complex_number(place, **options)
    assert same(got, _steps_with_a_part_of_a_complex_number(place, **READERS["single"]))


def _in_groups(ps):
    return [{"params": ps[::2]}, {"params": ps[1::2], "lr": 0.03}]


@pytest.mark.parametrize("arrange", [list, _in_groups], ids=["one group", "two groups"])
@all_rules
def test_gradients_that_come_and_go_give_each_parameter_a_count_of_its_own(kind, rule, arrange):
    twins = Twins(rule, helpers.params([(4, 4), (5,), (), (3, 2), (7,)]), arrange)
    for number in range(24):
        twins.step(_take(*(i for i in range(5) if number >> i & 1)))
    assert set(looks_of(twins.optimizer)) == {kind}
    if rule == "adam":
        assert [int(twins.optimizer.state[p]["step"]) for p in twins.ps] == [12, 12, 12, 16, 16]


@all_rules
def test_parameter_whose_first_gradient_comes_late_joins(kind, rule):
    twins = Twins(rule, helpers.params([(4, 4), (5,), (3, 2)]))
    for number in range(12):
        twins.step(_take(*(i for i, begins in enumerate((0, 6, 9)) if number < begins)))
    assert set(looks_of(twins.optimizer)) == {kind}


def test_report_while_all_gradients_are_missing_is_given(kind):
    twins = Twins("adam", helpers.params([(4, 4), (5,)])).settle(kind)
    twins.step(_take(0, 1))
    assert str(twins.optimizer.explain())
    twins.step()
    assert [int(s["step"]) for s in twins.optimizer.state.values()] == [SETTLED + 1] * 2


# ## Modules


def network(seed=3):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


@pytest.fixture
def swapping():
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def _loaded(module):
    module.load_state_dict({k: v.double() + 1 for k, v in module.state_dict().items()})


def _converted_twice(module):
    module.to(torch.float64)
    module.to(torch.float32)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("convert", [_converted_twice, lambda m: m.bfloat16(), _loaded], ids=["back", "half", "loaded"])
def test_module_whose_parameters_are_swapped_goes_on(kind, convert):
    results = []
    for options in ({}, READERS["single"]):
        module = network()
        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9, **options)
        data = torch.linspace(-1, 1, 24).view(4, 6)
        for number in range(8):
            optimizer.zero_grad()
            if number == SETTLED:
                convert(module)
            loss = module(data.to(module[0].weight.dtype)).square().sum()
            loss.backward()
            del loss
            optimizer.step()
        results.append(helpers.values(module.parameters()))
        assert options or set(looks_of(optimizer)) == {kind}
    assert same(*results)


@all_rules
def test_module_that_is_shared_with_other_processes_goes_on(kind, rule):
    module = network()
    twins = Twins(rule, list(module.parameters())).settle(kind)
    places = [p.data_ptr() for p in module.parameters()]
    module.share_memory()
    assert not {p.data_ptr() for p in module.parameters()} & set(places)
    twins.step()
    assert set(looks_of(twins.optimizer)) == {kind}
    twins.step()


# ## States


def _moment(optimizer, p):
    """The name of the first tensor in a state."""
    return next(name for name in optimizer.state[p] if name != "step")


def _in_state(change):
    """A change of the first tensor in the state of the first parameter, which it gives anew."""

    def changed(ps, optimizer):
        name = _moment(optimizer, ps[0])
        optimizer.state[ps[0]][name] = change(optimizer.state[ps[0]][name])

    return changed


def _of_state(change):
    """A change of the state of the first parameter."""
    return lambda ps, optimizer: change(optimizer.state[ps[0]])


def _moment_moved(ps, optimizer):
    tensor = optimizer.state[ps[0]][_moment(optimizer, ps[0])]
    tensor.data = tensor.data.clone()


def _moment_removed(ps, optimizer):
    for name in ("momentum_buffer", "exp_avg"):
        optimizer.state[ps[0]].pop(name, None)


@torch.no_grad()
def _moment_transposed_in_its_place(ps, optimizer):
    optimizer.state[ps[0]][_moment(optimizer, ps[0])].t_()


def _moment_swapped(ps, optimizer):
    tensor = optimizer.state[ps[0]][_moment(optimizer, ps[0])]
    other = tensor * 2
    torch.utils.swap_tensors(tensor, other)
    del other


def _whole_replaced(ps, optimizer):
    optimizer.state[ps[0]] = {name: value.clone() for name, value in optimizer.state[ps[0]].items()}


def _removed(ps, optimizer):
    optimizer.state.pop(ps[0], None)


def _cleared(ps, optimizer):
    optimizer.state.clear()


def _loaded_again(ps, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _all_replaced(ps, optimizer):
    optimizer.state = copy.copy(optimizer.state)


def _exchanged_states(ps, optimizer):
    optimizer.state[ps[0]], optimizer.state[ps[1]] = optimizer.state[ps[1]], optimizer.state[ps[0]]


def _count_moved(state):
    state["step"].data = state["step"].data.clone() + 3


STATES = {
    "replaced": _in_state(lambda t: torch.full_like(t, 0.25)),
    "replaced by a copy": _in_state(torch.clone),
    "written in place": _in_state(lambda t: t.mul_(2.0)),
    "moved": _moment_moved,
    "shared with other processes": _in_state(torch.Tensor.share_memory_),
    "of another dtype": _in_state(torch.Tensor.float),
    "transposed": _in_state(_transposed),
    "transposed in its place": _in_state(torch.t),
    "transposed by itself": _moment_transposed_in_its_place,
    "shorter in its place": _in_state(lambda t: t[:2]),
    "of one more dimension in its place": _in_state(lambda t: t[None]),
    "strided": _in_state(lambda t: torch.stack([t, t], dim=-1)[..., 0]),
    "swapped": _moment_swapped,
    "removed": _moment_removed,
    "a parameter": _in_state(lambda t: torch.nn.Parameter(t, requires_grad=False)),
    "whole replaced": _whole_replaced,
    "whole removed": _removed,
    "all removed": _cleared,
    "all replaced": _all_replaced,
    "exchanged between parameters": _exchanged_states,
    "loaded": _loaded_again,
}
COUNTS = {
    "replaced": _of_state(lambda s: s.update(step=torch.tensor(10.0))),
    "written in place": _of_state(lambda s: s["step"].fill_(20.0)),
    "added to": _of_state(lambda s: s["step"].add_(2.0)),
    "moved": _of_state(_count_moved),
    "shared with other processes": _of_state(lambda s: s["step"].share_memory_()),
    "an integer tensor": _of_state(lambda s: s.update(step=torch.tensor(7))),
    "float64": _of_state(lambda s: s.update(step=s["step"].double())),
    "a number": _of_state(lambda s: s.update(step=9)),
    "removed": _of_state(lambda s: s.pop("step", None)),
}
ABSENT = pytest.mark.parametrize("absent", [False, True], ids=["gradient there", "gradient missing"])


def assert_change_of_state_is_seen(rule, change, kind, absent):
    def happening(ps, optimizer):
        change(ps, optimizer)
        if absent:
            ps[0].grad = None

    twins = Twins(rule, helpers.params([(4, 4), (4, 4), (5,), ()])).settle(kind, known=True)
    for now in (happening, None, happening, happening, None, None):
        twins.step(now)
        if twins.refused:
            return


@ABSENT
@pytest.mark.parametrize("name", STATES)
@all_rules
def test_change_of_a_state_is_seen(kind, rule, name, absent):
    assert_change_of_state_is_seen(rule, STATES[name], kind, absent)


@ABSENT
@pytest.mark.parametrize("name", COUNTS)
def test_change_of_a_count_is_seen(kind, name, absent):
    assert_change_of_state_is_seen("adam", COUNTS[name], kind, absent)


@all_rules
def test_tensor_that_is_put_in_a_state_is_used_and_written(kind, rule):
    twins = Twins(rule, helpers.params([(4, 4), (5,)])).settle(kind, known=True)
    name = _moment(twins.optimizer, twins.ps[0])
    mine = [torch.full((4, 4), 0.25, dtype=torch.float64) for _ in twins.sides]
    for tensor, (ps, optimizer) in zip(mine, twins.sides, strict=True):
        optimizer.state[ps[0]][name] = tensor
    old = mine[0].clone()
    for _ in range(3):
        twins.step()
    assert twins.optimizer.state[twins.ps[0]][name] is mine[0]
    assert not same(mine[0], old)


def test_state_whose_entry_is_gone_is_as_with_the_plain_reader(kind):
    """SGD starts its momentum anew; Adam can't do without."""
    twins = Twins("sgd", helpers.params([(4, 4), (5,)])).settle(kind, known=True)
    twins.step(_moment_removed)
    assert not twins.refused
    twins = Twins("adam", helpers.params([(4, 4), (5,)])).settle(kind, known=True)
    twins.step(_moment_removed)
    assert twins.refused


# ## Many tensors

MANY = [1, 15, 16, 17, 31, 32, 33, 100]
CYCLE = [(), (3,), (2, 3), (0,), (1,), (2, 1, 3), (2, 2, 2, 2, 2), (3, 0, 2)]


def _each_change(at):
    """Changes of a matrix at a place."""
    return {
        "missing": _take(at),
        "transposed": _give(at, _transposed),
        "moved": _set_data(at, torch.clone),
        "gradient of another dtype": _half_in_its_place(at),
        "state replaced": _moment_replaced_at(at),
        "parameter transposed in its place": _set_data(at, torch.t),
    }


def _half_in_its_place(at):
    def changed(ps, optimizer):
        ps[at].grad.data = ps[at].grad.data.bfloat16()

    return changed


def _moment_replaced_at(at):
    def changed(ps, optimizer):
        optimizer.state[ps[at]]["momentum_buffer"] = torch.full_like(ps[at], 0.5)

    return changed


@pytest.mark.parametrize("many", MANY)
def test_change_at_any_place_of_many_tensors_is_seen(kind, many):
    for at in sorted({0, many // 2, many - 1}):
        chosen = [*itertools.islice(itertools.cycle(CYCLE), many)]
        chosen[at] = (3, 3)
        twins = Twins("sgd", helpers.params(chosen, torch.float32)).settle(kind)
        for name, change in _each_change(at).items():
            try:
                twins.step(change)
                twins.step()
            except AssertionError as error:
                raise AssertionError(f"{name} at {at}") from error


@pytest.mark.parametrize("many", MANY)
def test_gradients_that_are_missing_in_turns_are_seen(kind, many):
    twins = Twins("sgd", helpers.params([(3,), (2, 2), ()] * (many // 3) + [(3,)] * (many % 3), torch.float32))
    twins.settle(kind)
    for number in range(6):
        twins.step(_take(*range(number % 3, many, 3)))
    twins.step()


# ## Versions


def versions(tensors):
    return [t._version for t in tensors]


@pytest.mark.parametrize("known", [False, True], ids=["states unknown", "states known"])
@pytest.mark.parametrize("many", [1, 17, 33])
@all_rules
def test_step_advances_the_version_of_every_tensor_that_it_writes(kind, rule, many, known):
    twins = Twins(rule, helpers.params([(3, 2)] * many)).settle(kind, known)
    moments = [t for s in _states(twins.optimizer) for n, t in s.items() if n != "step"]
    before, moments_before = versions(twins.ps), versions(moments)
    twins.step()
    assert all(now > then for now, then in zip(versions(twins.ps), before, strict=True))
    if known:
        assert all(now > then for now, then in zip(versions(moments), moments_before, strict=True))


@all_rules
def test_parameter_without_a_gradient_keeps_its_version(kind, rule):
    twins = Twins(rule, helpers.params([(3, 2)] * 3)).settle(kind, known=True)
    for _ in range(3):
        before = versions(twins.ps)
        moments = [[t for n, t in s.items() if n != "step"] for s in twins.optimizer.state.values()]
        moments_before = [versions(m) for m in moments]
        twins.step(_take(1))
        assert [now > then for now, then in zip(versions(twins.ps), before, strict=True)] == [True, False, True]
        moved = [versions(m) > then for m, then in zip(moments, moments_before, strict=True)]
        assert moved == [True, False, True]


@pytest.mark.parametrize("place", ["parameter", "state"])
@all_rules
def test_backward_through_what_a_step_has_written_is_an_error(kind, rule, place):
    twins = Twins(rule, helpers.params([(3, 2), (5,), ()])).settle(kind, known=True)
    factor = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    p = twins.ps[0]
    written = p if place == "parameter" else twins.optimizer.state[p][_moment(twins.optimizer, p)]
    loss = (written * factor).sum()
    twins.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _refuse_sparse(ps):
    ps[1].grad = ps[1].grad.to_sparse()


def _refuse_strides(ps):
    ps[1].grad = _transposed(ps[1].grad)


def _refuse_shape(ps):
    ps[1].grad.data = torch.ones(7, dtype=torch.float64)


@pytest.mark.parametrize("refuse", [_refuse_sparse, _refuse_strides, _refuse_shape], ids=["sparse", "strides", "shape"])
def test_step_that_is_refused_leaves_versions_alone(kind, refuse):
    ps = helpers.params([(3, 3), (3, 3), (5,)])
    optimizer = helpers.run(Adam(ps, fused=True), ps, helpers.gradients(ps, SETTLED))
    written = [*ps, *(t for s in optimizer.state.values() for t in s.values())]
    helpers.run(optimizer, ps, helpers.gradients(ps, 2))
    (row,) = helpers.gradients(ps, 1)
    for p, g in zip(ps, row, strict=True):
        p.grad = g
    refuse(ps)
    before, values = versions(written), helpers.values(written)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert versions(written) == before
    assert same(helpers.values(written), values)


# ## What can't be asked from C


@pytest.fixture
def fresh(monkeypatch):
    """Nothing has been found out about torch, nothing is loaded, and nothing was said."""
    for name, memory in list(vars(compiler).items()):
        if isinstance(memory, (dict, set)) and not name.startswith("__"):
            monkeypatch.setattr(compiler, name, type(memory)())
    monkeypatch.setattr(look, "_told", set())
    c_look.of_torch.cache_clear()
    yield
    c_look.of_torch.cache_clear()


def assert_python_looks(caplog, reason):
    """Steps are fused and right, and the reason is said once, whatever the number of optimizers and plans."""
    with caplog.at_level(logging.INFO, logger="optimizers"):
        for rule in (*RULES, "sgd"):
            twins = Twins(rule, helpers.params([(4, 4), (5,), ()]), fused=True).settle("python")
            twins.step(_take(1))
            twins.step()
            assert set(looks_of(twins.optimizer)) == {"python"}
    (record,) = [r for r in caplog.records if r.name == "optimizers"]
    assert record.levelno == logging.INFO
    assert reason in record.getMessage()


def _with_name(monkeypatch, before, after):
    assert before in c_look.NAMES
    monkeypatch.setattr(c_look, "NAMES", tuple(after if name == before else name for name in c_look.NAMES))


@needs_c
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("lacking", c_look.NAMES)
def test_torch_that_lacks_a_function_is_asked_by_python(caplog, monkeypatch, lacking):
    _with_name(monkeypatch, lacking, lacking + "_of_tomorrow")
    assert_python_looks(caplog, "lacks a function")


#: Functions that do no harm in the place of others, but give wrong answers.
WRONG = {
    "sizes for strides": ("aoti_torch_get_strides", "aoti_torch_get_sizes"),
    "an offset for an address": ("aoti_torch_get_data_ptr", "aoti_torch_get_storage_offset"),
    "a size for an address": ("aoti_torch_get_data_ptr", "aoti_torch_get_storage_size"),
    "a dtype for a layout": ("aoti_torch_get_layout", "aoti_torch_get_dtype"),
    "no new version": ("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", "PyErr_Clear"),
    "no entry of a dictionary": ("PyDict_GetItemWithError", "PyErr_Occurred"),
}


@needs_c
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_wrong_are_found_by_the_trial(caplog, monkeypatch, name):
    _with_name(monkeypatch, *WRONG[name])
    assert_python_looks(caplog, "")


@needs_c
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("answer", [0, 1])
def test_look_that_always_says_the_same_is_found_by_the_trial(caplog, monkeypatch, answer):
    ending = f"int gradients_changed(const look *l) {{ return {answer}; }}\n"
    source = c_look.SOURCE.replace("int gradients_changed(", "int not_called(") + ending
    assert source.count("gradients_changed(") == 1
    monkeypatch.setattr(c_look, "SOURCE", source)
    assert_python_looks(caplog, "other answers than torch")


@needs_c
@pytest.mark.usefixtures("fresh")
def test_object_without_a_pointer_to_its_tensor_is_asked_by_python(caplog, monkeypatch):
    monkeypatch.setattr(c_look, "Tensor", SimpleNamespace(__basicsize__=0))
    assert_python_looks(caplog, "where objects keep the tensors")


def test_state_that_is_no_plain_dictionary_is_looked_at_by_python(kind):
    class Mine(dict):
        pass

    def replaced(ps, optimizer):
        optimizer.state[ps[0]] = Mine(optimizer.state[ps[0]])

    twins = Twins("adam", helpers.params([(4, 4), (5,)])).settle(kind, known=True)
    twins.step(replaced)
    for change in (None, STATES["replaced"], COUNTS["written in place"], None):
        twins.step(change)
    assert set(looks_of(twins.optimizer)) == {"python"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems name their functions otherwise")
@pytest.mark.skipif(torch.__version__ < (2, 9), reason="torch has these functions from 2.9 on")
def test_torch_of_today_is_asked_from_c():
    assert _can_ask()
    ps = helpers.params([(4, 4), (5,)])
    optimizer = helpers.run(Adam(ps, fused=True), ps, helpers.gradients(ps, 2))
    assert looks_of(optimizer) == ["c"]


# ## What might end the process


def _zeros(shape):
    return torch._efficientzerotensor(shape, dtype=torch.float64)


def _gradient_of_zeros(twins):
    """It has no memory. As zeros, it lets the momentum decay."""
    for p, q in zip(twins.ps, twins.qs, strict=True):
        p.grad, q.grad = _zeros(p.shape), torch.zeros_like(q)
    twins.optimizer.step()
    twins.plain.step()
    twins.assert_alike()


def _gradients_of_zeros_later(rule):
    twins = Twins(rule, helpers.params([(4, 3), (), (5,)])).settle()
    _gradient_of_zeros(twins)
    _gradient_of_zeros(twins)
    twins.step()


def _gradients_of_zeros_first(rule):
    twins = Twins(rule, helpers.params([(4, 3), (), (5,)]))
    for _ in range(3):
        _gradient_of_zeros(twins)
    twins.step()


def _state_of_zeros(rule):
    """It can't be written, which torch says."""
    twins = Twins(rule, helpers.params([(4, 3), (5,)])).settle(known=True)
    twins.step(_in_state(lambda t: _zeros(t.shape)))
    assert twins.refused


def _parameter_of_zeros(rule):
    twins = Twins(rule, helpers.params([(4, 3), (5,)])).settle()
    twins.step(_set_data(0, lambda d: _zeros(d.shape)))
    assert twins.refused


def _many_dimensions(rule, count):
    twins = Twins(rule, helpers.params([(1,) * count, (3,)]))
    for _ in range(SETTLED + 2):
        twins.step()
    twins.step(_set_data(0, torch.clone))


def _many_dimensions_of_a_parameter(rule):
    def change(ps, optimizer):
        ps[0].data = ps[0].data.view((1,) * 200)
        ps[0].grad = ps[0].grad.view((1,) * 200)

    twins = Twins(rule, helpers.params([(), (3,)])).settle()
    twins.step(change)


def _many_dimensions_of_a_gradient(rule):
    def change(ps, optimizer):
        ps[0].grad.data = ps[0].grad.data.view((1,) * 200)

    twins = Twins(rule, helpers.params([(1,), (3,)])).settle()
    twins.step(change)
    assert twins.refused


def _many_dimensions_of_a_state(rule):
    def change(ps, optimizer):
        tensor = optimizer.state[ps[0]][_moment(optimizer, ps[0])]
        tensor.data = tensor.data.view((1,) * 200)

    twins = Twins(rule, helpers.params([(), (3,)])).settle(known=True)
    twins.step(change)


def _inference_mode(rule, fused):
    """All is made and stepped in the mode, and has no versions."""
    with torch.inference_mode():
        ps, qs = ([p.detach().clone() for p in helpers.params([(4, 3), (), (5,)])] for _ in range(2))
        assert all(p.is_inference() for p in (*ps, *qs))
        optimizer, plain = RULES[rule](ps, fused=fused), RULES[rule](qs, **READERS["single"])
        for row in helpers.gradients(ps, SETTLED + 2):
            for p, q, g in zip(ps, qs, row, strict=True):
                p.grad, q.grad = g.clone(), g.clone()
            optimizer.step()
            plain.step()
        assert reader_of(optimizer) == {"fused"}
        assert looks_of(optimizer) == ["python"]
        assert_within(ULPS_PER_STEP * SETTLED, ps, qs, qs)


def _inference_mode_for_some_steps(rule):
    """What was made before has versions, and what is made within has none."""
    ps, qs = helpers.params([(4, 3), (), (5,)]), helpers.params([(4, 3), (), (5,)])
    optimizer, plain = RULES[rule](ps), RULES[rule](qs, **READERS["single"])
    for number, row in enumerate(helpers.gradients(ps, SETTLED + 4)):
        with torch.inference_mode(number in (SETTLED, SETTLED + 1)):
            for p, q, g in zip(ps, qs, row, strict=True):
                p.grad, q.grad = g.clone(), g.clone()
            optimizer.step()
            plain.step()
    assert_within(ULPS_PER_STEP * (SETTLED + 4), ps, qs, qs)


def _inference_data(rule):
    """A parameter takes the memory of a tensor without a version, and keeps its own."""

    def change(ps, optimizer):
        with torch.inference_mode():
            data = torch.ones(4, 3, dtype=torch.float64)
        ps[0].data = data

    twins = Twins(rule, helpers.params([(4, 3), (5,)])).settle()
    twins.step(change)
    twins.step()


FATES = {
    "gradients of zeros without memory": _gradients_of_zeros_later,
    "gradients of zeros without memory at first": _gradients_of_zeros_first,
    "state of zeros without memory": _state_of_zeros,
    "parameter of zeros without memory": _parameter_of_zeros,
    **{f"{count} dimensions": partial(_many_dimensions, count=count) for count in (15, 16, 17, 64, 65, 200)},
    "parameter of many dimensions": _many_dimensions_of_a_parameter,
    "gradient of many dimensions": _many_dimensions_of_a_gradient,
    "state of many dimensions": _many_dimensions_of_a_state,
    "inference mode": partial(_inference_mode, fused=None),
    "inference mode and fused=True": partial(_inference_mode, fused=True),
    "inference mode for some steps": _inference_mode_for_some_steps,
    "data made in inference mode": _inference_data,
}


def tell_fates():
    """Print what became of a child that did each of these things: nothing, if all went well."""
    for rule in RULES:
        # What is imported and loaded now need not be by each of them.
        Twins(rule, helpers.params([(3,)])).settle()
    fates = {}
    for kind, (name, act), rule in itertools.product(LOOKS, FATES.items(), RULES):
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    with looking(kind):
                        act(rule)
                    status = 0
                except BaseException:
                    traceback.print_exc(file=said)
                    said.flush()
                finally:
                    os._exit(status)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            fates[f"{kind} {name} {rule}"] = f"it ended with {code}\n{said.read()}" if code else ""
    print(json.dumps(fates))


@pytest.fixture(scope="module")
def fates():
    """A process of its own has the children, so that none has threads or a test runner for a parent."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from tests import test_look; test_look.tell_fates()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("name", FATES)
@all_rules
@all_looks
def test_process_lives_through(fates, kind, rule, name):
    fate = fates[f"{kind} {name} {rule}"]
    assert not fate, fate


# ## Threads


@all_rules
def test_gradients_of_others_that_are_replaced_meanwhile_do_no_harm(kind, rule):
    twins = Twins(rule, helpers.params([(4, 4), (5,), ()] * 4))
    others = helpers.params([(4, 4), (5,), ()] * 4, seed=2)
    stop, errors = threading.Event(), []

    def replace():
        try:
            while not stop.is_set():
                for p in others:
                    p.grad = torch.full_like(p, 1e6)
                others[0].grad = None
        except BaseException as error:
            errors.append(error)

    neighbour = RULES[rule](others)
    for p in others:
        p.grad = torch.ones_like(p)
    neighbour.step()
    worker = threading.Thread(target=replace)
    worker.start()
    try:
        for _ in range(60):
            twins.step()
    finally:
        stop.set()
        worker.join(60)
    assert not errors
    assert set(looks_of(twins.optimizer)) == {kind}


@all_rules
def test_optimizers_in_two_threads_step_as_alone(kind, rule):
    pairs = [Twins(rule, helpers.params([(4, 4), (5,), (), (2, 3)] * 5, seed=seed)) for seed in (1, 2)]
    together, errors = threading.Barrier(2, timeout=60), []

    def work(twins):
        try:
            together.wait()
            for number in range(40):
                twins.step(_take(number % 20) if number % 5 == 4 else None)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(twins,)) for twins in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors
    assert [set(looks_of(twins.optimizer)) for twins in pairs] == [{kind}] * 2


# ## Whatever happens

shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6)
STEPS = 5


def _happens_missing(p, optimizer):
    p.grad = None


def _happens_transposed(p, optimizer):
    p.grad = _transposed(p.grad) if p.dim() > 1 else torch.stack([p.grad, p.grad])[1]


def _happens_strided(p, optimizer):
    p.grad = torch.stack([p.grad, p.grad + 1], dim=-1)[..., 0]


def _happens_negated(p, optimizer):
    p.grad = _negated(p.grad)


def _happens_moved(p, optimizer):
    p.data = p.data.clone()


def _happens_laid_out_otherwise(p, optimizer):
    p.data = _transposed(p.data) if p.dim() > 1 else p.data.clone()


def _happens_replaced(p, optimizer):
    if "momentum_buffer" in optimizer.state.get(p, {}):
        optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 0.5, requires_grad=False)


def _happens_removed(p, optimizer):
    optimizer.state.pop(p, None)


EVENTS = {
    "nothing": None,
    "gradient missing": _happens_missing,
    "gradient transposed": _happens_transposed,
    "gradient strided": _happens_strided,
    "gradient negated": _happens_negated,
    "parameter moved": _happens_moved,
    "parameter laid out otherwise": _happens_laid_out_otherwise,
    "state replaced": _happens_replaced,
    "state removed": _happens_removed,
}
events = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*EVENTS])), max_size=3)


@all_looks
@given(shapes=shapes, story=st.lists(events, min_size=STEPS, max_size=STEPS))
def test_whatever_happens_between_steps_is_seen(kind, shapes, story):
    with looking(kind):
        twins = Twins("sgd", helpers.params(shapes, torch.float32))
        for happenings in story:

            def happen(ps, optimizer, happenings=happenings):
                for at, name in happenings:
                    p = ps[at % len(ps)]
                    if p.grad is not None and EVENTS[name] is not None:
                        EVENTS[name](p, optimizer)

            twins.step(happen)


# ## The look itself

GUARD = 0x5EED


def looked_at(count, absent=()):
    """Parameters, and a look at them whose table has a guard in every place."""
    ps = helpers.params([(3, 2)] * count, torch.float32)
    for p in ps:
        p.grad = torch.zeros_like(p)
    for index in absent:
        ps[index].grad = None
    states = [{"m": torch.zeros_like(p, requires_grad=False), "count": torch.tensor(7.0)} for p in ps]
    table = array("Q", [GUARD + i for i in range(5 * count)])
    rows = array("i", [-1 if index in absent else 0 for index in range(count)])
    return ps, states, table, c_look.CLook(ps, states, ("m",), ("count",), table, rows)


def addresses(ps):
    return [p.grad.data_ptr() for p in ps]


@needs_c
@pytest.mark.parametrize("count", MANY)
def test_addresses_of_gradients_are_put_behind_those_of_parameters_and_nowhere_else(count):
    ps, _, table, watch = looked_at(count)
    before = table[:]
    for _ in range(3):
        assert watch.gradients_changed() == 0
        assert table[count : 2 * count].tolist() == addresses(ps)
        assert table[:count] == before[:count]
        assert table[2 * count :] == before[2 * count :]
        for p in ps:
            p.grad = torch.ones_like(p)


@needs_c
@pytest.mark.parametrize("count", MANY)
def test_change_leaves_the_rest_of_the_table_alone(count):
    for at in sorted({0, count // 2, count - 1}):
        ps, _, table, watch = looked_at(count)
        before = table[:]
        ps[at].grad = torch.zeros(2, 3).t()
        assert watch.gradients_changed()
        ps[at].grad = None
        assert watch.gradients_changed()
        assert table[:count] == before[:count]
        assert table[2 * count :] == before[2 * count :]
        ps[at].grad = torch.zeros(3, 2)
        assert watch.gradients_changed() == 0
        assert table[count : 2 * count].tolist() == addresses(ps)


@needs_c
@pytest.mark.parametrize("shape", [(1,), (3, 1, 2), (1, 1)], ids=str)
def test_another_stride_of_a_dimension_of_one_is_no_change(shape):
    p = torch.zeros(shape, requires_grad=True)
    p.grad = torch.zeros(shape)
    table = array("Q", [0, 0])
    watch = c_look.CLook([p], [{}], (), (), table, array("i", [0]))
    strides = [77 if n == 1 else stride for n, stride in zip(shape, p.stride(), strict=True)]
    p.grad = torch.ones(6).as_strided(shape, strides)
    assert p.grad.stride() != p.stride()
    assert watch.gradients_changed() == 0
    assert table[1] == p.grad.data_ptr()


@needs_c
def test_gradient_that_is_missing_as_before_is_no_change():
    ps, _, table, watch = looked_at(20, absent=(3, 19))
    before = table[:]
    assert watch.gradients_changed() == 0
    assert [i for i in range(100) if table[i] != before[i]] == [20 + i for i in range(20) if i not in (3, 19)]
    ps[19].grad = torch.zeros(3, 2)
    assert watch.gradients_changed()
    ps[19].grad = None
    assert watch.gradients_changed() == 0
    ps[4].grad = None
    assert watch.gradients_changed()


@needs_c
def test_states_that_are_the_same_are_no_change():
    _, states, table, watch = looked_at(20)
    before = table[:]
    assert watch.states_changed() == 0
    states[7]["another"] = torch.ones(1)
    states[7]["m"].add_(1.0)
    assert watch.states_changed() == 0
    kept = states[19]["m"]
    for other in (torch.zeros(3, 2), None):
        states[19]["m"] = other
        assert watch.states_changed()
    del states[19]["m"]
    assert watch.states_changed()
    states[19]["m"] = kept
    assert watch.states_changed() == 0
    kept.data = kept.data.clone()
    assert watch.states_changed()
    assert table == before


@needs_c
def test_marks_are_for_those_that_step():
    """A count is no tensor to autograd: its version tells nothing of it."""
    ps, states, _, watch = looked_at(20, absent=(3, 19))
    moments, counts = ([state[name] for state in states] for name in ("m", "count"))
    one_each = [0 if i in (3, 19) else 1 for i in range(20)]

    def advanced(tensors, before):
        return [now - then for now, then in zip(versions(tensors), before, strict=True)]

    before, moments_before, counts_before = map(versions, (ps, moments, counts))
    watch.mark()
    assert advanced(ps, before) == one_each
    assert versions(moments) == moments_before
    watch.mark_states()
    assert advanced(ps, before) == advanced(moments, moments_before) == one_each
    assert versions(counts) == counts_before


@needs_c
@pytest.mark.parametrize("made", [lambda p: p.to_sparse(), _zeros], ids=["sparse", "without memory"])
def test_tensor_without_memory_of_its_own_is_not_looked_at_from_c(made):
    p = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    p.grad = made(p.detach()) if made is not _zeros else _zeros(p.shape)
    with pytest.raises(NoCompiler, match="be found out"):
        c_look.CLook([p], [{}], (), (), array("Q", [0, 0]), array("i", [0]))
