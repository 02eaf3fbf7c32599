"""
Swapping `torch.optim.X` for `optimizers.X` changes nothing: results, arguments, errors, checkpoints, hooks, labels.

torch's side is always its for-loop (`foreach=False, fused=False`). The `single` reader does the same operations in
the same order, so it is compared bit for bit; the bound of the others is in `rules.py`.
"""

import copy
import inspect
import io
import warnings
from functools import partial

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optimizers import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RMSprop, Rprop
from tests import helpers
from tests.helpers import same
from tests.rules import CLASS_TWINS, READERS, TWINS, UNDEMANDING, pairs

PAIRS = [(rule.cls, rule.twin) for rule in CLASS_TWINS if rule.cls.__name__ == rule.twin.__name__]

all_twins = pytest.mark.parametrize("rule", TWINS, ids=str)
all_classes = pytest.mark.parametrize("rule", CLASS_TWINS, ids=str)
all_readers = pytest.mark.parametrize("reader", READERS)
undemanding_readers = pytest.mark.parametrize("reader", UNDEMANDING)
twins_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(TWINS), ids=str)
classes_by_all_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS), ids=str)
classes_by_undemanding_readers = pytest.mark.parametrize(("rule", "reader"), pairs(CLASS_TWINS, UNDEMANDING), ids=str)
all_pairs = pytest.mark.parametrize(
    ("ours", "theirs"), PAIRS, ids=lambda c: f"{c.__module__.split('.')[0]}-{c.__name__}"
)


# ## Results


@twins_by_all_readers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_hundred_steps_equal_torchs(rule, reader, dtype):
    ours, theirs = helpers.params_for(rule, dtype=dtype), helpers.params_for(rule, dtype=dtype)
    start, rows = helpers.values(ours), helpers.gradients(ours, 100)
    optimizer = helpers.run(rule.build(ours, reader), ours, rows)
    twin = helpers.run(rule.build_twin(theirs), theirs, rows)
    helpers.assert_as_torch(reader, ours, theirs, start, 100)
    for p, q in zip(ours, theirs, strict=True):
        got, want = optimizer.state.get(p, {}), twin.state.get(q, {})
        names = list(want)
        assert list(got) == names
        zeros = [torch.zeros_like(want[name]) for name in names]
        helpers.assert_as_torch(reader, [got[n] for n in names], [want[n] for n in names], zeros, 100)


@all_twins
def test_default_reader_equals_torch_too(rule):
    """With no reader asked for, as nearly everyone uses it: whatever is chosen keeps within the bound."""
    ours, theirs = helpers.params_for(rule, dtype=torch.float32), helpers.params_for(rule, dtype=torch.float32)
    start, rows = helpers.values(ours), helpers.gradients(ours, 20)
    helpers.run(rule.cls(ours, **rule.kwargs), ours, rows)
    helpers.run(rule.build_twin(theirs), theirs, rows)
    helpers.assert_within(40, ours, theirs, start)


@twins_by_all_readers
def test_training_a_network_equals_torchs(rule, reader):
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double())
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    ours = rule.build(rule.parameters(nets[0]), reader)
    theirs = rule.build_twin(rule.parameters(nets[1]))
    start = helpers.values(nets[0].parameters())
    for net, optimizer in zip(nets, (ours, theirs), strict=True):
        for _ in range(20):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
    got, want = list(nets[0].parameters()), list(nets[1].parameters())
    if reader == "single":
        assert same(helpers.values(got), helpers.values(want))
    else:
        # Gradients follow the parameters here, so a difference may grow; not to where anyone would see it.
        helpers.assert_within(1e4, got, want, start)


@pytest.mark.parametrize(("rule", "reader"), pairs(rule for rule in TWINS if rule.takes(torch.complex64)), ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=["complex64", "complex128"])
def test_complex_parameters_move_as_torchs(rule, reader, dtype):
    ours, theirs = helpers.params(dtype=dtype), helpers.params(dtype=dtype)
    start, rows = helpers.values(ours), helpers.gradients(ours, 20)
    helpers.run(rule.build(ours, reader), ours, rows)
    helpers.run(rule.build_twin(theirs), theirs, rows)
    # torch's SGD multiplies complex numbers where we multiply pairs: other roundings, the same values.
    helpers.assert_within(20 if reader == "single" else 40, ours, theirs, start)


@twins_by_all_readers
def test_missing_gradients_are_treated_as_torchs(rule, reader):
    ours, theirs = helpers.params_for(rule), helpers.params_for(rule)
    start = helpers.values(ours)
    rows = [
        [g if (step + i) % 3 else None for i, g in enumerate(row)]
        for step, row in enumerate(helpers.gradients(ours, 12))
    ]
    optimizer = helpers.run(rule.build(ours, reader), ours, rows)
    twin = helpers.run(rule.build_twin(theirs), theirs, rows)
    helpers.assert_as_torch(reader, ours, theirs, start, 12)
    for p, q in zip(ours, theirs, strict=True):
        assert ("step" in optimizer.state[p]) == ("step" in twin.state[q])
        if "step" in twin.state[q]:
            assert same(optimizer.state[p]["step"], twin.state[q]["step"])


@twins_by_all_readers
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_nan_and_infinity_in_a_gradient_spread_as_in_torch(rule, reader, bad):
    ours, theirs = helpers.params_for(rule, [(9,)]), helpers.params_for(rule, [(9,)])
    rows = helpers.gradients(ours, 4)
    rows[1][0][3] = bad
    rows[1][0][4] = -bad
    helpers.run(rule.build(ours, reader), ours, rows)
    helpers.run(rule.build_twin(theirs), theirs, rows)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True, rtol=1e-14, atol=1e-14)


@classes_by_undemanding_readers
def test_duplicate_parameter_in_a_group_is_warned_of_and_steps_as_in_torch(rule, reader):
    ours, theirs = helpers.params_for(rule, [(3,), (2,)]), helpers.params_for(rule, [(3,), (2,)])
    start, rows = helpers.values(ours), helpers.gradients(ours, 3)
    with pytest.warns(UserWarning, match="duplicate parameters") as warned:
        optimizer = rule.build([ours[0], ours[1], ours[0]], reader)
    with pytest.warns(UserWarning, match="duplicate parameters") as expected:
        twin = rule.build_twin([theirs[0], theirs[1], theirs[0]])
    assert [str(w.message) for w in warned] == [str(w.message) for w in expected]
    helpers.run(optimizer, ours, rows)
    helpers.run(twin, theirs, rows)
    helpers.assert_as_torch(reader, ours, theirs, start, 6)


# ## Arguments


@all_pairs
def test_signature_begins_with_torchs_and_ours_follow_by_keyword_only(ours, theirs):
    def described(cls):
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]

    got, want = described(ours), described(theirs)
    assert got[: len(want)] == want
    assert len(got) > len(want)
    by_keyword = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    assert all(kind in by_keyword for _, kind, _ in got[len(want) :])


@all_twins
def test_groups_and_defaults_have_torchs_keys_and_values(rule):
    ours, theirs = rule.build(helpers.params_for(rule)), rule.build_twin(helpers.params_for(rule))
    loop = {"foreach": False, "fused": False}
    for got, want in [(ours.defaults, theirs.defaults), (ours.param_groups[0], theirs.param_groups[0])]:
        want = {**want, **loop} if "fused" in got else want
        assert {k: got[k] for k in want if k != "params"} == {k: v for k, v in want.items() if k != "params"}
    assert isinstance(ours, torch.optim.Optimizer)


@twins_by_all_readers
def test_state_has_torchs_names_shapes_and_dtypes(rule, reader):
    ours, theirs = helpers.params_for(rule, dtype=torch.float32), helpers.params_for(rule, dtype=torch.float32)
    got = helpers.run(rule.build(ours, reader), ours, helpers.gradients(ours, 2)).state_dict()["state"]
    want = helpers.run(rule.build_twin(theirs), theirs, helpers.gradients(ours, 2)).state_dict()["state"]

    def described(states):
        return {i: {k: (v.shape, v.dtype, v.device, v.stride()) for k, v in s.items()} for i, s in states.items()}

    assert described(got) == described(want)


def _p():
    return [torch.nn.Parameter(torch.ones(2, 1))]


def _two():
    return torch.tensor([0.1, 0.2])


NAN = float("nan")
_ADAM_ERRORS = [
    {"lr": torch.tensor(-1.0)},
    {"lr": torch.tensor(0.1), "foreach": True},
    {"betas": (1.0, 0.9)},
    {"betas": (-0.1, 0.9)},
    {"betas": (0.9, 1.0)},
    {"betas": (0.9, NAN)},
    {"betas": (0.9, -0.1)},
    {"betas": (0, 0.9)},
    {"betas": (0.9, torch.tensor(0.9))},
    {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True},
    {"weight_decay": NAN},
    {"fused": True, "foreach": True},
    {"fused": True, "differentiable": True},
]
_SGD_ERRORS = [
    {"momentum": -0.5},
    {"nesterov": True},
    {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    {"fused": True, "foreach": True},
    {"fused": True, "differentiable": True},
]
_COMMON_ERRORS = [{"lr": -1.0}, {"lr": NAN}, {"lr": _two()}, {"weight_decay": -0.1}, {"eps": -1e-9}, {"eps": NAN}]
_OWN_ERRORS = {
    "Adam": _ADAM_ERRORS,
    "AdamW": _ADAM_ERRORS,
    "SGD": _SGD_ERRORS,
    "RMSprop": [{"momentum": -0.5}, {"momentum": NAN}, {"alpha": -0.1}],
    "NAdam": [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"momentum_decay": -1.0}],
    "Adamax": [{"betas": (1.0, 0.9)}, {"betas": (0.9, NAN)}],
    "Adagrad": [{"lr_decay": -0.1}, {"initial_accumulator_value": -1.0}, {"fused": True, "foreach": True}],
    "Adadelta": [{"rho": -0.1}, {"rho": 1.1}, {"rho": NAN}],
    "Rprop": [{"etas": (0.0, 1.2)}, {"etas": (0.5, 1.0)}, {"etas": (1.5, 0.5)}],
    "ASGD": [],
    "RAdam": [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}],
    "Muon": [{"momentum": -0.1}, {"momentum": NAN}, {"weight_decay": NAN}, {"adjust_lr_fn": "none"}],
}


def _refuses(cls, bad):
    """Does torch's class have these arguments and refuse them? Some let a NaN pass."""
    if not set(bad) <= set(inspect.signature(cls).parameters):
        return False
    try:
        cls(_p(), **bad)
    except Exception:
        return True
    return False


_ERRORS = [
    (ours, theirs, bad)
    for ours, theirs in PAIRS
    for bad in [*_COMMON_ERRORS, *_OWN_ERRORS[ours.__name__]]
    if _refuses(theirs, bad)
]


@pytest.mark.parametrize(
    ("ours", "theirs", "bad"), _ERRORS, ids=[f"{o.__name__}-{'-'.join(map(str, b.items()))}" for o, _, b in _ERRORS]
)
def test_bad_argument_is_refused_in_torchs_words(ours, theirs, bad):
    with pytest.raises(Exception) as want:
        theirs(_p(), **bad)
    with pytest.raises(type(want.value)) as got:
        ours(_p(), **bad)
    assert str(got.value) == str(want.value)
    assert type(got.value) is type(want.value)


@all_pairs
@pytest.mark.parametrize("key", ["lr", "momentum", "weight_decay", "eps", "alpha"])
def test_nan_is_refused_also_where_torch_lets_it_pass(ours, theirs, key):
    if key not in inspect.signature(ours).parameters:
        pytest.skip("not an argument of this class")
    with pytest.raises(ValueError, match=r"nan$"):
        ours(_p(), **{key: NAN})


@all_pairs
@pytest.mark.parametrize(
    "params",
    [
        lambda: torch.ones(2, requires_grad=True),
        list,
        lambda: [{"params": set(_p())}],
        lambda: [1.0],
        lambda: [torch.ones(2, requires_grad=True) * 2],
        lambda: [{"lr": 0.1}],
        lambda: [("a", _p()[0]), _p()[0]],
        lambda: [{"params": [p]} for p in _p() * 2],
        lambda: None,
    ],
    ids=["tensor", "empty", "set", "number", "non-leaf", "no-params", "half-named", "in-two-groups", "none"],
)
def test_bad_parameters_are_refused_in_torchs_words(ours, theirs, params):
    with pytest.raises(Exception) as want:
        theirs(params())
    with pytest.raises(type(want.value)) as got:
        ours(params())
    assert str(got.value) == str(want.value)


# ## Groups


@all_classes
@pytest.mark.parametrize(
    "bad", [{"lr": -1}, {"lr": NAN}, {"weight_decay": -1.0}, {"lr": _two()}], ids=["lr", "nan", "decay", "two"]
)
def test_group_is_checked_like_the_constructor(rule, bad):
    if not set(bad) <= set(inspect.signature(rule.cls).parameters):
        pytest.skip("not an argument of this class")
    with pytest.raises(ValueError) as constructor:
        rule.cls(_p(), **bad)
    with pytest.raises(ValueError) as group:
        rule.cls([{"params": _p()}, {"params": _p(), **bad}])
    assert str(group.value) == str(constructor.value)


@pytest.mark.parametrize(
    ("cls", "bad"),
    [
        (Adam, {"betas": (1.0, 0.9)}),
        (AdamW, {"eps": -1.0}),
        (SGD, {"momentum": -1.0}),
        (SGD, {"nesterov": True}),
        (SGD, {"moving_average": True, "momentum": 1.0}),
        (RMSprop, {"alpha": -1.0}),
        (RMSprop, {"momentum": -1.0}),
        (NAdam, {"momentum_decay": -1.0}),
        (Adamax, {"betas": (1.0, 0.9)}),
        (Adagrad, {"lr_decay": -1.0}),
        (Rprop, {"etas": (1.5, 1.2)}),
        (ASGD, {"t0": NAN}),
    ],
    ids=str,
)
def test_group_is_checked_for_the_rules_own_hyper_parameters(cls, bad):
    with pytest.raises(ValueError):
        cls(_p(), **bad)
    with pytest.raises(ValueError):
        cls([{"params": _p(), **bad}])


@classes_by_all_readers
@pytest.mark.parametrize("cause", ["lr", "duplicate", "not-a-tensor", "no-params", "not-a-dict"])
def test_failed_add_param_group_leaves_the_optimizer_as_it_was(rule, reader, cause):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, 3)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:1])
    before = copy.deepcopy(optimizer.state_dict())
    bad = {
        "lr": {"params": _p(), "lr": -1.0},
        "duplicate": {"params": [ps[0]]},
        "not-a-tensor": {"params": [1.0]},
        "no-params": {"lr": 0.1},
        "not-a-dict": _p(),
    }[cause]
    given = dict(bad) if isinstance(bad, dict) else bad
    with pytest.raises((ValueError, TypeError, KeyError)):
        optimizer.add_param_group(bad)
    assert bad == given
    assert len(optimizer.param_groups) == 1
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    helpers.run(optimizer, ps, rows[1:])
    undisturbed = helpers.params_for(rule)
    helpers.run(rule.build(undisturbed, reader), undisturbed, rows)
    assert same(helpers.values(ps), helpers.values(undisturbed))


@all_classes
def test_the_callers_dictionaries_are_not_changed(rule):
    ps = helpers.params_for(rule)
    extra = {"note": 1}
    group = {"params": (p for p in ps[:1]), "lr": 0.1}
    late = {"params": ps[1], "lr": 0.2}
    kept = dict(extra), dict(group), dict(late)
    optimizer = rule.cls([group], defaults=extra)
    optimizer.add_param_group(late)
    assert (extra, group, late) == kept
    assert [g["note"] for g in optimizer.param_groups] == [1, 1]
    assert optimizer.param_groups[1]["params"] == [ps[1]]
    assert optimizer.defaults is not extra


def test_betas_given_as_a_list_become_a_pair_and_the_list_stays():
    betas = [0.8, 0.9]
    optimizer = Adam([{"params": _p()}, {"params": _p(), "betas": betas}], betas=betas)
    assert [g["betas"] for g in optimizer.param_groups] == [(0.8, 0.9)] * 2
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert betas == [0.8, 0.9]


@classes_by_all_readers
def test_named_parameters_keep_their_names_and_train_the_same(rule, reader):
    plain, named, theirs = helpers.params_for(rule), helpers.params_for(rule), helpers.params_for(rule)
    rows = helpers.gradients(plain, 4)
    names = [f"layer.{i}" for i in range(len(named))]
    optimizer = rule.build(list(zip(names, named, strict=True)), reader)
    twin = rule.build_twin(list(zip(names, theirs, strict=True)))
    helpers.run(optimizer, named, rows)
    helpers.run(rule.build(plain, reader), plain, rows)
    helpers.run(twin, theirs, rows)
    assert same(helpers.values(named), helpers.values(plain))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == twin.state_dict()["param_groups"][0]["param_names"] == names
    twin.load_state_dict(saved)
    optimizer.load_state_dict(twin.state_dict())
    assert optimizer.param_groups[0]["param_names"] == names


# ## Sparse gradients


def _sparse(coalesced):
    entries = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.25, 4.0]], dtype=torch.float64)
    gradient = torch.sparse_coo_tensor([[1, 3, 1]], entries, (5, 2), check_invariants=True)
    return gradient.coalesce() if coalesced else gradient


@undemanding_readers
@pytest.mark.parametrize("coalesced", [True, False], ids=["coalesced", "uncoalesced"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"maximize": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=str,
)
def test_sgd_takes_sparse_gradients_as_torch(reader, coalesced, kwargs):
    ours, theirs = helpers.params([(5, 2)]), helpers.params([(5, 2)])
    mine = SGD(ours, lr=0.1, **kwargs, **READERS.get(reader, {}))
    twin = torch.optim.SGD(theirs, lr=0.1, **kwargs, foreach=False, fused=False)
    for scale in (1.0, -3.0, 0.5):
        ours[0].grad, theirs[0].grad = (_sparse(coalesced) * scale for _ in range(2))
        mine.step()
        twin.step()
    assert same(ours[0], theirs[0])
    assert mine.state_dict()["state"].keys() == twin.state_dict()["state"].keys()


@undemanding_readers
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own step
@pytest.mark.parametrize("coalesced", [True, False], ids=["coalesced", "uncoalesced"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"lr_decay": 0.1, "maximize": True}, {"initial_accumulator_value": 0.3, "eps": 1e-3}], ids=str
)
def test_adagrad_takes_sparse_gradients_as_torch(reader, coalesced, kwargs):
    ours, theirs = helpers.params([(5, 2)]), helpers.params([(5, 2)])
    mine = Adagrad(ours, lr=0.1, **kwargs, **READERS.get(reader, {}))
    twin = torch.optim.Adagrad(theirs, lr=0.1, **kwargs, foreach=False, fused=False)
    for scale in (1.0, -3.0, 0.5):
        ours[0].grad, theirs[0].grad = (_sparse(coalesced) * scale for _ in range(2))
        mine.step()
        twin.step()
    assert same(ours[0], theirs[0])
    assert same(mine.state[ours[0]]["sum"], twin.state[theirs[0]]["sum"])


def test_adagrad_shares_its_sums_with_other_processes():
    ps = helpers.params()
    optimizer = Adagrad(ps, initial_accumulator_value=0.5)
    optimizer.share_memory()
    assert all(optimizer.state[p]["sum"].is_shared() for p in ps)
    assert all(torch.equal(optimizer.state[p]["sum"], torch.full_like(p, 0.5)) for p in ps)


@undemanding_readers
@pytest.mark.parametrize(("ours", "theirs"), [(SGD, torch.optim.SGD), (Adagrad, torch.optim.Adagrad)])
def test_sparse_embedding_trains_beside_dense_layers_as_with_torch(reader, ours, theirs):
    results = []
    for make in (partial(ours, lr=0.1, **READERS.get(reader, {})), partial(theirs, lr=0.1, foreach=False)):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Embedding(7, 3, sparse=True), torch.nn.Linear(3, 1))
        optimizer = make(net.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            net(torch.tensor([1, 5, 1])).square().sum().backward()
            optimizer.step()
        results.append(list(net.parameters()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rule", "reader"), pairs(rule for rule in CLASS_TWINS if rule.cls.sparse_error), ids=str)
def test_sparse_gradient_is_refused_in_torchs_words_before_anything_moves(rule, reader):
    shapes = [(4,), (5, 2), (3,)]
    ours, theirs = helpers.params_for(rule, shapes), helpers.params_for(rule, shapes)
    rows = helpers.gradients(ours, 3)
    optimizer = rule.build([{"params": ours[:1]}, {"params": ours[1:]}], reader)
    helpers.run(optimizer, ours, rows[:2])
    before, state = helpers.values(ours), copy.deepcopy(optimizer.state_dict())
    for ps in (ours, theirs):
        for p, g in zip(ps, rows[2], strict=True):
            p.grad = g.clone()
        ps[1].grad = _sparse(True)
    with pytest.raises(RuntimeError) as want:
        rule.build_twin(theirs).step()
    with pytest.raises(RuntimeError) as got:
        optimizer.step()
    assert str(got.value) == str(want.value)
    assert same(helpers.values(ours), before)
    for i, expected in state["state"].items():
        assert all(same(optimizer.state_dict()["state"][i][k], v) for k, v in expected.items())
    ours[1].grad = rows[2][1].clone()
    optimizer.step()
    untroubled = helpers.params_for(rule, shapes)
    helpers.run(rule.build(untroubled, reader), untroubled, rows)
    assert same(helpers.values(ours), helpers.values(untroubled))


# ## Checkpoints


def _through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@twins_by_all_readers
@pytest.mark.parametrize("direction", ["torch-to-ours", "ours-to-torch", "there-and-back"])
def test_checkpoint_crosses_over_and_training_goes_on(rule, reader, direction):
    # In float64 torch's own NAdam does not go on as before: loading turns its product into a float64 number.
    ps, uninterrupted = helpers.params_for(rule, dtype=torch.float32), helpers.params_for(rule, dtype=torch.float32)
    start, rows = helpers.values(ps), helpers.gradients(ps, 12)
    rows = [[None if (i, t) == (1, 3) else g for i, g in enumerate(row)] for t, row in enumerate(rows)]
    helpers.run(rule.build_twin(uninterrupted), uninterrupted, rows)

    def ours(ps):
        return rule.build(ps, reader)

    chain = {
        "torch-to-ours": [rule.build_twin, ours],
        "ours-to-torch": [ours, rule.build_twin],
        "there-and-back": [ours, rule.build_twin, ours, rule.build_twin],
    }[direction]
    part = len(rows) // len(chain)
    saved = None
    for n, make in enumerate(chain):
        ps = helpers.copies(ps)
        optimizer = make(ps)
        if saved is not None:
            optimizer.load_state_dict(saved)
        if make is ours:
            # The reader is in the group, so it came with the checkpoint.
            optimizer.param_groups[0].update(READERS[reader])
        else:
            optimizer.param_groups[0].update(dict.fromkeys(("foreach", "fused"), False))
        helpers.run(optimizer, ps, rows[n * part : (n + 1) * part])
        saved = _through_a_file(optimizer.state_dict())
    helpers.assert_as_torch(reader, ps, uninterrupted, start, 12)


def _after_some_steps(rule, reader, steps=3):
    ps = helpers.params_for(rule)
    rows = helpers.gradients(ps, steps + 3)
    optimizer = helpers.run(rule.build(ps, reader), ps, rows[:steps])
    return ps, rows[steps:], optimizer


@classes_by_all_readers
@pytest.mark.parametrize(
    "count", [int, float, lambda s: s.double(), lambda s: s.view(1)], ids=["int", "float", "f64", "1d"]
)
def test_older_checkpoint_with_another_kind_of_step_count_goes_on(rule, reader, count):
    ps, rows, optimizer = _after_some_steps(rule, reader)
    saved = copy.deepcopy(optimizer.state_dict())
    if not any("step" in s for s in saved["state"].values()):
        pytest.skip("this rule does not count")
    for state in saved["state"].values():
        for name in rule.cls.scalar_state:
            state[name] = (float if count is int and name != "step" else count)(state[name])
    resumed = helpers.copies(ps)
    fresh = rule.build(resumed, reader)
    fresh.load_state_dict(saved)
    scalars = [state[name] for state in fresh.state.values() for name in rule.cls.scalar_state]
    assert all(scalar.dtype == torch.float32 and scalar.shape == () for scalar in scalars)
    helpers.run(optimizer, ps, rows)
    helpers.run(fresh, resumed, rows)
    assert same(helpers.values(ps), helpers.values(resumed))


@classes_by_all_readers
def test_older_checkpoint_without_the_newer_group_keys_goes_on(rule, reader):
    ps, rows, optimizer = _after_some_steps(rule, reader)
    saved = copy.deepcopy(optimizer.state_dict())
    newer = {"foreach", "maximize", "capturable", "differentiable", "fused"}
    oldest = {"params", *inspect.signature(rule.twin).parameters} - newer
    for group in saved["param_groups"]:
        for key in set(group) - oldest:
            del group[key]
    resumed = helpers.copies(ps)
    fresh = rule.build(resumed, reader)
    keys = set(fresh.param_groups[0])
    fresh.load_state_dict(saved)
    assert set(fresh.param_groups[0]) == keys
    # The reader was in the group too.
    fresh.param_groups[0].update(READERS[reader])
    helpers.run(optimizer, ps, rows)
    helpers.run(fresh, resumed, rows)
    assert same(helpers.values(ps), helpers.values(resumed))


def test_older_checkpoint_of_plain_sgd_does_not_gain_what_the_new_optimizer_was_built_with():
    ps = helpers.params()
    saved = torch.optim.SGD(ps, lr=0.1).state_dict()
    for key in ("maximize", "nesterov", "foreach", "differentiable", "fused"):
        del saved["param_groups"][0][key]
    optimizer = SGD(ps, lr=0.5, momentum=0.9, nesterov=True, maximize=True)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["maximize"]) == (0.1, 0, False, False)


def test_checkpoint_of_torchs_l2_adam_loaded_into_adamw_decays_decoupled():
    ps = helpers.params()
    optimizer = AdamW(ps)
    optimizer.load_state_dict(torch.optim.Adam(ps, weight_decay=0.1).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@classes_by_all_readers
@pytest.mark.parametrize("cause", ["groups", "parameters", "shapes"])
def test_checkpoint_of_another_model_is_refused_and_the_optimizer_stays_as_it_was(rule, reader, cause):
    ps, rows, optimizer = _after_some_steps(rule, reader)
    untroubled = copy.deepcopy(optimizer)
    shapes = {"parameters": [(4, 3)], "shapes": [(3, 4), (5,), (), (2, 1, 3)]}.get(cause, helpers.SHAPES)
    other = helpers.params_for(rule, shapes)
    groups = [{"params": [p]} for p in other] if cause == "groups" else other
    source = rule.build(groups, reader, lr=0.77)
    helpers.run(source, other, helpers.gradients(other, 1))
    with pytest.raises(ValueError):
        optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["lr"] == untroubled.param_groups[0]["lr"]
    assert helpers.same_state(optimizer, untroubled)
    copied = untroubled.param_groups[0]["params"]
    helpers.run(optimizer, ps, rows)
    helpers.run(untroubled, copied, rows)
    assert same(helpers.values(ps), helpers.values(copied))


@classes_by_all_readers
def test_state_dict_hooks_fire_once_each_and_are_heard(rule, reader):
    _ps, _, optimizer = _after_some_steps(rule, reader)
    calls = []

    def edit(_, state_dict):
        calls.append("load pre")
        groups = [{**g, "lr": 0.25} for g in state_dict["param_groups"]]
        return {"state": state_dict["state"], "param_groups": groups}

    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save pre"))
    optimizer.register_state_dict_post_hook(lambda o, d: calls.append("save post") or {**d, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(edit)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("load post"))
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert calls == ["save pre", "save post", "load pre", "load post"]
    assert saved["extra"] == 1
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.load_state_dict(saved)
    assert calls[4:] == ["load pre", "load post"]


# ## Hooks and labels


class Mine(Adam):
    """A user's subclass."""


class Loud(Adam):
    """A user's subclass that wraps the step."""

    def step(self, closure=None):
        return super().step(closure)


class LouderStill(Loud):
    """A subclass of that one, which wraps it again."""

    def step(self, closure=None):
        return super().step(closure)


class _Wrapping:
    def step(self, closure=None):
        return super().step(closure)


class Mixed(_Wrapping, Adam):
    """The wrapping step comes from a mixin that is no optimizer."""


HOOKED = [Adam, AdamW, SGD, RMSprop, Mine, Loud, LouderStill, Mixed]


@pytest.fixture
def log():
    """Calls of the global hooks; the hooks are gone afterwards."""
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, a, k: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda o, a, k: calls.append("global post")),
    ]
    yield calls
    for handle in handles:
        handle.remove()


@all_readers
@pytest.mark.parametrize("cls", HOOKED, ids=lambda c: c.__name__)
def test_step_hooks_fire_once_each_in_torchs_order(cls, reader, log):
    ps = helpers.params()
    optimizer = cls(ps, lr=0.1, **READERS[reader])
    pre = optimizer.register_step_pre_hook(lambda o, a, k: log.append("pre"))
    optimizer.register_step_post_hook(lambda o, a, k: log.append("post"))
    helpers.step(optimizer, ps, helpers.gradients(ps, 1)[0])
    assert log == ["global pre", "pre", "post", "global post"]
    pre.remove()
    log.clear()
    optimizer.step(lambda: log.append("closure"))
    assert log == ["global pre", "closure", "post", "global post"]


@all_readers
@pytest.mark.parametrize("call", ["plain", "positional", "keyword", "none"])
@all_pairs
def test_hooks_are_given_torchs_arguments(ours, theirs, call, reader):
    def closure():
        return 3.0

    seen = []
    for cls, options in ((ours, READERS[reader]), (theirs, {})):
        optimizer = cls(_p(), lr=0.1, **options)

        def note(o, args, kwargs, optimizer=optimizer):
            assert o is optimizer
            assert args[0] is optimizer
            seen.append((args[1:], kwargs))

        optimizer.register_step_pre_hook(note)
        optimizer.register_step_post_hook(note)
        result = {
            "plain": optimizer.step,
            "positional": lambda o=optimizer: o.step(closure),
            "keyword": lambda o=optimizer: o.step(closure=closure),
            "none": lambda o=optimizer: o.step(None),
        }[call]()
        assert result == (3.0 if call in ("positional", "keyword") else None)
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]


@all_readers
def test_pre_hook_may_replace_the_closure(reader):
    optimizer = Adam(helpers.params(), **READERS[reader])
    optimizer.register_step_pre_hook(lambda o, a, k: ((o, lambda: "replaced"), {}))
    assert optimizer.step() == "replaced"
    assert optimizer.step(lambda: "original") == "replaced"


@all_readers
def test_pre_hook_that_returns_something_else_is_an_error(reader):
    optimizer = Adam(helpers.params(), **READERS[reader])
    optimizer.register_step_pre_hook(lambda o, a, k: 7)
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()


@all_readers
@pytest.mark.parametrize("cls", HOOKED, ids=lambda c: c.__name__)
def test_profiler_shows_torchs_label_once_a_step(cls, reader):
    ps = helpers.params()
    rows = helpers.gradients(ps, 3)
    optimizer = cls(ps, lr=0.1, **READERS[reader])
    helpers.step(optimizer, ps, rows[0])
    with warnings.catch_warnings():
        # The profiler itself warns on some machines; that is not what is tested.
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            helpers.run(optimizer, ps, rows[1:])
        counts = {event.key: event.count for event in profile.key_averages()}
    assert counts[f"Optimizer.step#{cls.__name__}.step"] == 2


@all_readers
def test_hooks_do_not_survive_a_copy_just_as_in_torch(reader):
    calls = []
    optimizer = Adam(helpers.params(), **READERS[reader])
    optimizer.register_step_pre_hook(lambda o, a, k: calls.append(1))
    copy.deepcopy(optimizer).step()
    assert calls == []
    optimizer.step()
    assert calls == [1]


# ## What else people do with an optimizer


@classes_by_all_readers
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_does_as_torch(rule, reader, set_to_none):
    ps = helpers.params_for(rule)
    optimizer = helpers.run(rule.build(ps, reader), ps, helpers.gradients(ps, 1))
    optimizer.zero_grad(set_to_none=set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in ps)


@all_classes
def test_repr_shows_the_groups_like_torchs(rule):
    ours, theirs = repr(rule.build(helpers.params_for(rule))), repr(rule.build_twin(helpers.params_for(rule)))
    assert ours.startswith(f"{rule.cls.__name__} (")
    assert set(theirs.splitlines()[1:]) - {"    foreach: None", "    fused: None"} <= set(ours.splitlines())


@classes_by_all_readers
def test_frozen_parameter_is_left_alone(rule, reader):
    ps = helpers.params_for(rule)
    ps[1].requires_grad_(False)
    start = helpers.values(ps)
    helpers.run(
        rule.build(ps, reader), ps, [[g if i != 1 else None for i, g in enumerate(helpers.gradients(ps, 1)[0])]]
    )
    assert same(ps[1], start[1])


@classes_by_all_readers
def test_grad_scaler_skips_a_step_with_infinite_gradients_and_takes_the_next_as_torch(rule, reader):
    results = []
    for make in (lambda p: rule.build(p, reader), rule.build_twin):
        ps = helpers.params_for(rule, dtype=torch.float32)
        start = helpers.values(ps)
        optimizer = make(ps)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        path = []
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in ps) * factor
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            path.append(helpers.values(ps))
        assert same(path[0], path[1])
        results.append(path)
    for got, want in zip(*results, strict=True):
        helpers.assert_as_torch(reader, got, want, start, 3)
