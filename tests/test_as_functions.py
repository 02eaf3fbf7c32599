"""Rules as pure functions: as the class, pure, and under vmap, grad and compile."""

import functools
import math
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils import _pytree as pytree

import optimizers
from optimizers import ASGD, SGD, Adagrad, Adam, AdamFP16, Lion, Muon, NAdam, RAdam, Rprop, as_functions
from tests import helpers
from tests.rules import BY_NAME, CLASSES, RULES

STEPS = 12
SHAPES = [(4, 3), (5,), (), (2, 1, 3)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128]

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
every_class = pytest.mark.parametrize("rule", CLASSES, ids=str)
smooth_classes = pytest.mark.parametrize("rule", [rule for rule in CLASSES if not rule.matrices], ids=str)


def functions(rule, **changes):
    return as_functions(rule.cls, **{**rule.kwargs, **changes})


def tree_for(rule, dtype=torch.float64, seed=1):
    """Parameters as a tree that has a bit of everything."""
    a, b, c, d = helpers.values(helpers.params_for(rule, SHAPES, dtype, seed))
    return {"layer": [a, (b, c)], "head": OrderedDict(w=d)}


def grads_for(params, steps=STEPS, seed=2):
    leaves, tree = pytree.tree_flatten(params)
    return [tree.unflatten(row) for row in helpers.gradients(leaves, steps, seed)]


def run(fns, params, rows):
    state = fns.init(params)
    for i, grads in enumerate(rows):
        state = fns.update(i, grads, state)
    return state


def flat(tree):
    return pytree.tree_leaves(tree)


def assert_as_class(state, optimizer, params):
    """Are the parameters and all of the state the same, bit for bit?"""
    assert helpers.same(flat(state.params), helpers.values(params))
    slots = pytree.tree_leaves(state.slots, is_leaf=lambda node: isinstance(node, optimizers.functional.Slot))
    for param, slot in zip(params, slots, strict=True):
        kept = {name: value for name, value in optimizer.state[param].items() if name != "step"}
        numbers = {name: torch.tensor(value, dtype=torch.float32) for name, value in slot.numbers.items()}
        assert kept.keys() == slot.tensors.keys() | numbers.keys()
        for name, value in {**slot.tensors, **numbers}.items():
            assert helpers.same(value, kept[name])


# ## The class


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@every_rule
def test_moves_as_the_class_bit_for_bit(rule, dtype):
    if not rule.takes(dtype):
        pytest.skip("takes real matrices")
    params = tree_for(rule, dtype)
    rows = grads_for(params)
    ps = helpers.copies(flat(params))
    optimizer = helpers.run(rule.build(ps), ps, map(flat, rows))
    assert_as_class(run(functions(rule), params, rows), optimizer, ps)


@every_class
def test_missing_gradient_keeps_a_parameter_and_its_count_as_in_the_class(rule):
    params = tree_for(rule)
    rows = grads_for(params)
    for i in (0, 3, 4):
        rows[i]["layer"][1] = (None, rows[i]["layer"][1][1])
    rows[5]["head"]["w"] = None
    ps = helpers.copies(flat(params))
    optimizer = helpers.run(rule.build(ps), ps, map(flat, rows))
    fns = functions(rule)
    state = run(fns, params, rows)
    slots = state.slots["layer"][1]
    assert [slot.missed for slot in slots] == [3, 0]
    for param in ps:
        optimizer.state[param].pop("step", None)
    assert_as_class(state, optimizer, ps)


@every_class
def test_schedule_gives_each_step_its_learning_rate(rule):
    def schedule(i):
        return 0.05 / (1 + i)

    params = tree_for(rule)
    rows = grads_for(params)
    ps = helpers.copies(flat(params))
    optimizer = rule.build(ps)
    for i, row in enumerate(rows):
        optimizer.param_groups[0]["lr"] = schedule(i)
        helpers.step(optimizer, ps, flat(row))
    assert_as_class(run(functions(rule, lr=schedule), params, rows), optimizer, ps)


def test_i_is_taken_as_given():
    init, update, get_params = as_functions(Adam, lr=0.1)
    grad = torch.tensor(0.5, dtype=torch.float64)
    theta = get_params(update(9, grad, init(torch.zeros((), dtype=torch.float64))))
    m_hat, v_hat = 0.1 * grad / (1 - 0.9**10), 0.001 * grad**2 / (1 - 0.999**10)
    torch.testing.assert_close(theta, -0.1 * m_hat / (v_hat.sqrt() + 1e-8))


def test_rule_of_ones_own_and_a_callable_that_makes_one():
    class Halving(SGD):
        scalar_state = (*SGD.scalar_state, "part")

        def init_state(self, state, group, param):
            state["part"] = 1.0

        def step_param(self, state, group, grad, param):
            param.sub_(grad.mul(group["lr"] * state["part"]))
            state["part"] = state["part"] / 2

    fns = as_functions(functools.partial(Halving, lr=1.0))
    state = run(fns, torch.zeros(()), [torch.ones(())] * 3)
    assert state.params == -1.75
    assert state.slots.numbers == {"part": 0.125}


# ## Purity


@every_class
def test_nothing_is_written(rule):
    params = tree_for(rule)
    first, second, third = grads_for(params, 3)
    fns = functions(rule)
    state = fns.update(1, second, fns.update(0, first, fns.init(params)))
    held = {id(t): t for t in flat((params, first, second, third, state))}
    before = {key: (t.clone(), t._version) for key, t in held.items()}
    one, other = fns.update(2, third, state), fns.update(2, third, state)
    assert helpers.same(flat(one), flat(other))
    assert pytree.tree_structure(one) == pytree.tree_structure(other)
    for key, (copy, version) in before.items():
        assert helpers.same(held[key], copy)
        assert held[key]._version == version
    # What a step leaves as it was, as Sophia its curvature, is handed on.
    new = [t for t in flat(one) if id(t) not in held]
    assert len(new) >= len(flat(params))
    memory = {t.untyped_storage().data_ptr() for t in held.values()}
    assert not memory & {t.untyped_storage().data_ptr() for t in new}


@every_class
def test_gradients_may_be_cleared_after_the_step(rule):
    params = tree_for(rule)
    kept, cleared = grads_for(params, 4), grads_for(params, 4)
    fns = functions(rule)
    state = fns.init(params)
    for i, grads in enumerate(cleared):
        state = fns.update(i, grads, state)
        pytree.tree_map_(torch.Tensor.zero_, grads)
    assert helpers.same(flat(state), flat(run(fns, params, kept)))


def test_differentiable_class_keeps_its_momentum_when_gradients_are_cleared():
    theta = torch.zeros(2)
    optimizer = SGD([theta], lr=1.0, momentum=0.5, differentiable=True)
    theta.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert optimizer.state[theta]["momentum_buffer"].tolist() == [1.0, 1.0]


# ## Trees

Pair = namedtuple("Pair", ["w", "b"])


class Own:
    def __init__(self, inner):
        self.inner = inner


pytree.register_pytree_node(Own, lambda own: ([own.inner], None), lambda children, _: Own(*children))

TREES = {
    "tensor": lambda a, b: a,
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, (b,)),
    "dict": lambda a, b: {"x": a, "y": {"z": b}},
    "ordered": lambda a, b: OrderedDict(x=a, y=b),
    "namedtuple": lambda a, b: Pair(a, [b]),
    "own": lambda a, b: {"own": Own((a, b))},
    "empty": lambda a, b: {},
}


@pytest.mark.parametrize("make", TREES.values(), ids=TREES.keys())
def test_parameters_are_any_pytree(make):
    params, grads = make(torch.ones(2), torch.ones(3)), make(torch.ones(2), torch.ones(3))
    fns = as_functions(SGD, lr=0.5, momentum=0.9)
    state = run(fns, params, [grads, grads])
    theta = fns.get_params(state)
    assert pytree.tree_structure(theta) == pytree.tree_structure(params)
    assert type(theta) is type(params)
    for leaf in flat(theta):
        torch.testing.assert_close(leaf, torch.full_like(leaf, 1 - 0.5 * 2.9))


def test_gradients_may_name_their_leaves_in_another_order():
    init, update, get_params = as_functions(SGD, lr=1.0)
    state = update(0, {"b": torch.ones(3), "a": torch.zeros(2)}, init({"a": torch.ones(2), "b": torch.ones(3)}))
    assert list(get_params(state)) == ["a", "b"]
    assert get_params(state)["b"].tolist() == [0, 0, 0]


def test_optree_takes_parameters_apart_as_torch_does():
    optree = pytest.importorskip("optree")
    fns = as_functions(Adam, lr=0.1)
    params = {"x": torch.ones(2), "y": (torch.ones(3), [torch.ones(())])}
    grads = optree.tree_map(torch.ones_like, params)
    theta = fns.get_params(run(fns, params, [grads]))
    assert optree.tree_structure(theta) == optree.tree_structure(params)


def test_state_is_a_pytree_of_tensors():
    params = {"w": torch.ones(2), "b": torch.ones(3)}
    state = run(as_functions(NAdam), params, [params, {"w": params["w"], "b": None}])
    assert state.slots["w"].tensors.keys() == {"exp_avg", "exp_avg_sq"}
    leaves, tree = pytree.tree_flatten(state)
    assert len(leaves) == 6
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    doubled = tree.unflatten([2 * leaf for leaf in leaves])
    assert doubled.slots["b"].missed == 1
    assert doubled.slots["w"].numbers == state.slots["w"].numbers != {}
    assert doubled.params["w"].equal(2 * state.params["w"])
    paths = {pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(state)[0]}
    assert ".slots['w'].tensors['exp_avg']" in paths


# ## vmap and grad


def loss(params, target=0.5):
    """A loss that isn't separable, and whose curvature is another at each coordinate."""
    flattened = torch.cat([p.reshape(-1) for p in flat(params)])
    scale = torch.linspace(0.5, 2.0, flattened.numel(), dtype=flattened.dtype)
    return (scale * (flattened - target)).square().sum() + (flattened.sum() / 3).cos()


def train(fns, params, steps=5):
    state = fns.init(params)
    for i in range(steps):
        state = fns.update(i, torch.func.grad(loss)(fns.get_params(state)), state)
    return loss(fns.get_params(state))


def close(rule):
    """Products of matrices in bfloat16 are another when they are done together."""
    return {"rtol": 0.05, "atol": 0.05} if rule.matrices else {"rtol": 1e-10, "atol": 1e-10}


@every_class
def test_ensembles_step_under_vmap(rule):
    models = [tree_for(rule, seed=seed) for seed in (1, 2, 3)]
    stacked = pytree.tree_map(lambda *leaves: torch.stack(leaves), *models)
    fns = functions(rule)
    state = torch.func.vmap(fns.init)(stacked)
    for i in range(8):
        grads = torch.func.vmap(torch.func.grad(loss))(state.params)
        state = torch.func.vmap(fns.update, in_dims=(None, 0, 0))(i, grads, state)
    alone = [fns.init(model) for model in models]
    for i in range(8):
        alone = [fns.update(i, torch.func.grad(loss)(s.params), s) for s in alone]
    torch.testing.assert_close(
        flat(state), [torch.stack(leaves) for leaves in zip(*map(flat, alone), strict=True)], **close(rule)
    )


@every_class
def test_learning_rates_are_mapped(rule):
    params = tree_for(rule)
    lrs = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)

    def after(lr):
        return train(functions(rule, lr=lr), params)

    if rule.cls is Rprop:
        with pytest.raises(TypeError, match="Rprop takes a Python number of a tensor that is differentiated or mapped"):
            torch.func.vmap(after)(lrs)
        return
    got = torch.func.vmap(after)(lrs)
    torch.testing.assert_close(got, torch.stack([after(lr) for lr in lrs]), **close(rule))
    # Numbers that are kept in float32, as torch does it, are kept so where they are no tensors.
    numbers = torch.stack([after(lr.item()) for lr in lrs])
    kept = {"rtol": 1e-6, "atol": 1e-6} if rule.precision and not rule.matrices else close(rule)
    torch.testing.assert_close(got, numbers, **kept)


def assert_slope(function, at, rtol=1e-5):
    """Is the gradient at a point what finite differences give, along some direction?"""
    slopes = torch.func.grad(function)(at)
    leaves, tree = pytree.tree_flatten(at)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5 for p in leaves]
    want = sum((slope * d).sum() for slope, d in zip(flat(slopes), directions, strict=True))
    h = 1e-6
    there, back = (
        function(tree.unflatten([p + sign * h * d for p, d in zip(leaves, directions, strict=True)]))
        for sign in (1, -1)
    )
    assert want != 0
    torch.testing.assert_close((there - back) / (2 * h), want, rtol=rtol, atol=1e-7)


@smooth_classes
def test_learning_rate_is_learnt_through_five_steps(rule):
    params = tree_for(rule)

    def after(lr):
        return train(functions(rule, lr=lr), params)

    lr = torch.tensor(rule.kwargs.get("lr", 0.01), dtype=torch.float64)
    if rule.cls is Rprop:
        with pytest.raises(TypeError, match="Rprop takes a Python number of a tensor that is differentiated or mapped"):
            torch.func.grad(after)(lr)
        return
    assert_slope(after, lr)


@smooth_classes
def test_initial_parameters_are_learnt_through_five_steps(rule):
    assert_slope(functools.partial(train, functions(rule)), tree_for(rule))


@pytest.mark.parametrize("name", ["adam-betas-eps", "adamw", "nadam", "adamax", "lion", "ademamix-warmup-l2", "radam"])
def test_betas_are_learnt(name):
    rule, params = BY_NAME[name], tree_for(BY_NAME[name])

    def after(betas):
        return train(functions(rule, betas=tuple(betas)), params)

    if rule.cls is Lion:
        # Its steps are signs; only a schedule of the learning rate moves the loss.
        assert torch.func.grad(after)(torch.tensor([0.9, 0.99], dtype=torch.float64)).eq(0).all()
        return
    assert_slope(after, torch.tensor([0.8, 0.95], dtype=torch.float64), rtol=1e-4)


def test_schedule_is_learnt():
    def after(weights):
        fns = as_functions(Adam, lr=lambda i: weights[i])
        return train(fns, torch.ones(3, dtype=torch.float64))

    assert_slope(after, torch.full((5,), 0.05, dtype=torch.float64))


def test_half_precision_is_differentiated_and_mapped_in_float32():
    params = {"w": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.bfloat16)}

    def after(lr):
        init, update, get_params = as_functions(Adam, lr=lr, betas=(lr * 9, lr * 9.5), weight_decay=0.1)
        state = update(0, params, init(params))
        assert {leaf.dtype for leaf in flat(state)} == {torch.bfloat16}
        return get_params(state)["w"].sum()

    lrs = torch.tensor([0.05, 0.1], dtype=torch.float64)
    assert torch.func.vmap(torch.func.grad(after))(lrs).lt(0).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_jacobian_forward_is_jacobian_backward():
    def after(lr):
        fns = as_functions(NAdam, lr=lr)
        state = run(fns, torch.ones(3, dtype=torch.float64), [torch.ones(3, dtype=torch.float64)] * 3)
        return state.params

    lr = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacfwd(after)(lr), torch.func.jacrev(after)(lr))


@every_class
def test_a_tensor_may_count(rule):
    params = tree_for(rule)
    rows = grads_for(params)
    fns = functions(rule)
    want, state = run(fns, params, rows), fns.init(params)
    for i, grads in enumerate(rows):
        state = fns.update(torch.tensor(i), grads, state)
    torch.testing.assert_close(flat(state.params), flat(want.params), rtol=1e-6, atol=1e-8)


def test_rule_that_decides_by_a_mapped_count_says_so():
    init, update, _ = as_functions(RAdam)
    state, i = init(torch.ones(2)), torch.arange(3)
    with pytest.raises(TypeError, match="RAdam decides by a tensor that is mapped"):
        torch.func.vmap(lambda i: update(i, torch.ones(2), state).params)(i)
    init, update, _ = as_functions(Adam)
    state = init(torch.ones(2))
    assert torch.func.vmap(lambda i: update(i, torch.ones(2), state).params)(i).shape == (3, 2)


# ## compile

#: They decide by the count, or by numbers made of it.
DECIDING = {"asgd-averaging-l2", "radam", "adabelief", "adam-warmup", "adam-warmup-cosine", "noam", "adam-fp16"}
DECIDING |= {"ademamix-warmup-l2"}


@pytest.fixture
def compiled():
    """A compiler that counts what it compiles."""
    torch._dynamo.reset()
    counter = CompileCounter()
    yield functools.partial(torch.compile, backend=counter), counter
    torch._dynamo.reset()


def run_counting(rule, compiled, number, **options):
    """How many frames were compiled after each step."""
    compiler, counter = compiled
    params = tree_for(rule)
    rows = grads_for(params)
    fns = functions(rule)
    update = compiler(fns.update, **options)
    state = want = fns.init(params)
    frames = []
    for i, grads in enumerate(rows):
        state, want = update(number(i), grads, state), fns.update(i, grads, want)
        frames.append(counter.frame_count)
    torch.testing.assert_close(flat(state.params), flat(want.params), rtol=1e-6, atol=1e-8)
    return frames


@pytest.mark.slow
@smooth_classes
def test_count_is_compiled_once_for_all_numbers(rule, compiled):
    frames = run_counting(rule, compiled, int, fullgraph=True)
    branches = {frames[i] for i in range(2, STEPS)}
    assert frames[:2] == [1, 2]
    assert branches <= ({2, 3} if rule.name in DECIDING else {2})


@pytest.mark.parametrize("rule", [r for r in CLASSES if not r.matrices and r.name not in DECIDING], ids=str)
def test_tensor_that_counts_is_compiled_once(rule, compiled):
    frames = run_counting(rule, compiled, torch.tensor, fullgraph=True)
    # Once more where the first step makes new state.
    assert frames[0] == 1
    assert set(frames[1:]) == {1 + (rule.name in ("sgd-momentum", "nadam"))}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_products_of_matrices_are_compiled_in_parts(compiled):
    frames = run_counting(BY_NAME["muon"], compiled, torch.tensor)
    assert len(set(frames[1:])) == 1


def test_schedule_is_compiled(compiled):
    compiler, counter = compiled
    fns = as_functions(Adam, lr=lambda i: 0.1 / (1 + i))
    update = compiler(fns.update, fullgraph=True)
    state = want = fns.init(torch.ones(3, dtype=torch.float64))
    for i in range(STEPS):
        state, want = (
            update(i, torch.ones(3, dtype=torch.float64), state),
            fns.update(i, torch.ones_like(state.params), want),
        )
    torch.testing.assert_close(state.params, want.params, rtol=1e-12, atol=0)
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("number", [int, torch.tensor])
def test_inductor_makes_kernels_of_an_update(number):
    fns = as_functions(Adam, lr=0.1, weight_decay=0.1)
    params = {"w": torch.linspace(-1, 1, 12).reshape(4, 3), "b": torch.ones(())}
    update = torch.compile(fns.update, fullgraph=True)
    state = want = fns.init(params)
    for i, grads in enumerate(grads_for(params)):
        state, want = update(number(i), grads, state), fns.update(i, grads, want)
    torch.testing.assert_close(flat(state), flat(want))


# ## Adam as it was published


def paper(t, g, state, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """Algorithm 1 of arXiv 1412.6980, line by line."""
    theta, m, v = state
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return theta - lr * (m / (1 - beta1**t)) / (torch.sqrt(v / (1 - beta2**t)) + eps), m, v


def lerp(a, b, t):
    return (1 - t) * a + t * b


def bias(beta, t):
    """The share of an average that gradients have, where the rest is the zero that it began with."""
    return -math.expm1(t * math.log(beta))


def interpolated(t, g, state, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    theta, m, v = state
    m, v = lerp(g, m, beta1), lerp(g * g, v, beta2)
    return theta - lr * m / bias(beta1, t) / ((v / bias(beta2, t)) ** 0.5 + eps), m, v


def normalised(t, g, state, lr, beta1=0.9, beta2=0.999, eps=1e-8):
    """Velocity and speed are averages without bias at any time; their quotient is a direction."""
    theta, velocity, square = state
    velocity = lerp(velocity, g, (1 - beta1) / bias(beta1, t))
    square = lerp(square, g * g, (1 - beta2) / bias(beta2, t))
    speed = square.sqrt()
    return theta - lr * velocity / (speed + eps), velocity, square


@pytest.mark.parametrize("form", [paper, interpolated, normalised])
def test_adam_is_the_three_published_forms(form):
    steepness = torch.logspace(-3, 3, 64, dtype=torch.float64)
    start = torch.linspace(-2, 3, 64, dtype=torch.float64)

    def slope(theta):
        return steepness * theta.sin()

    init, update, get_params = as_functions(Adam, lr=1e-3)
    ours, theirs = init(start), (start, torch.zeros_like(start), torch.zeros_like(start))
    for i in range(1000):
        ours = update(i, slope(get_params(ours)), ours)
        theirs = form(i + 1, slope(theirs[0]), theirs, 1e-3)
        movement, apart = (get_params(ours) - start).abs(), (get_params(ours) - theirs[0]).abs()
        assert apart.max() < 1e-12 * movement.max()
    # Of each coordinate too. The one that moved least began near its minimum.
    assert movement.min() > 0.01
    assert (apart < 1e-12 * movement).all()


# ## What can't be


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match=r"takes the rules of this package. Received: torch.optim.adam.Adam"):
        as_functions(torch.optim.Adam)
    with pytest.raises(TypeError, match=r"takes the class of an optimizer. Received: Adam"):
        as_functions(Adam([torch.zeros(1)]))
    with pytest.raises(TypeError, match=r"takes the class of an optimizer. Received: str"):
        as_functions("adam")


@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "differentiable"])
def test_ways_to_step_a_class_are_refused(option):
    with pytest.raises(ValueError, match=f"takes no {option}=True"):
        as_functions(Adam, **{option: True})
    as_functions(Adam, **{option: False})


@pytest.mark.parametrize(
    ("rule", "options", "error", "message"),
    [
        (Adam, {"lr": -1.0}, ValueError, "Invalid learning rate: -1.0"),
        (Adam, {"lr": lambda i: -1.0}, ValueError, "Invalid learning rate: -1.0"),
        (Adam, {"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
        (Adam, {"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1: 1.0"),
        (Adam, {"momentum": 0.9}, TypeError, "momentum"),
        (SGD, {"nesterov": True}, ValueError, "Nesterov momentum requires a momentum"),
    ],
)
def test_options_are_checked_by_the_rule(rule, options, error, message):
    with pytest.raises(error, match=message):
        as_functions(rule, **options)


def test_schedule_is_checked_at_each_step():
    init, update, _ = as_functions(SGD, lr=lambda i: 1 - i)
    state = update(1, torch.ones(2), init(torch.ones(2)))
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        update(2, torch.ones(2), state)
    init, update, _ = as_functions(SGD, lr=lambda i: torch.ones(1 + i))
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        update(1, torch.ones(2), init(torch.ones(2)))


def test_parameters_are_checked():
    init = as_functions(Adam).init
    with pytest.raises(TypeError, match=r"parameters must be tensors. Received: float at \['b'\]\[1\]"):
        init({"a": torch.ones(1), "b": [torch.ones(1), 2.0]})
    with pytest.raises(TypeError, match=r"parameters must be tensors. Received: NoneType"):
        init(None)
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        as_functions(Muon).init({"w": torch.ones(2, 2), "b": torch.ones(2)})


def test_gradients_are_checked():
    init, update, _ = as_functions(Adam)
    params = {"w": torch.ones(2, 2), "b": [torch.ones(2)]}
    state = init(params)
    with pytest.raises(ValueError, match="the gradients are another tree than the parameters"):
        update(0, {"w": params["w"]}, state)
    with pytest.raises(ValueError, match="the gradients are another tree than the parameters"):
        update(0, [params["w"], params["b"]], state)
    with pytest.raises(TypeError, match=r"gradients must be tensors. Received: list at \['w'\]"):
        update(0, {**params, "w": [params["w"]]}, state)
    with pytest.raises(
        ValueError, match=r"float32 of shape \(2,\). Received: torch.float32 of shape \(3,\) at \['b'\]"
    ):
        update(0, {**params, "b": [torch.ones(3)]}, state)
    with pytest.raises(ValueError, match=r"Received: torch.complex64"):
        update(0, {**params, "b": [torch.ones(2, dtype=torch.complex64)]}, state)


def test_sparse_gradients_are_refused():
    grad = torch.ones(2).to_sparse()
    for cls, message in ((Adam, "Adam does not support sparse"), (Adagrad, "pure functions take no sparse gradients")):
        init, update, _ = as_functions(cls)
        with pytest.raises(RuntimeError, match=message):
            update(0, grad, init(torch.ones(2)))


def test_count_is_checked():
    init, update, _ = as_functions(Adam)
    state = init(torch.ones(2))
    with pytest.raises(ValueError, match=r"i counts all steps from 0 on. Received: -1"):
        update(-1, torch.ones(2), state)
    with pytest.raises(ValueError, match="Received: 0, and a parameter has missed 1 steps"):
        update(0, torch.ones(2), update(0, None, state))
    with pytest.raises(TypeError, match="float"):
        update(1.0, torch.ones(2), state)


def test_weight_decay_is_learnt_but_not_mapped():
    params = tree_for(BY_NAME["adamw"])

    def after(weight_decay):
        return train(as_functions(optimizers.AdamW, lr=0.1, weight_decay=weight_decay), params)

    assert_slope(after, torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(TypeError, match="AdamW decides by a tensor that is mapped"):
        torch.func.vmap(after)(torch.ones(2, dtype=torch.float64))


def test_number_that_would_lose_its_gradient_is_refused():
    class Rooted(SGD):
        def step_param(self, state, group, grad, param):
            param.add_(grad, alpha=-math.sqrt(group["lr"]))

    def after(lr):
        init, update, get_params = as_functions(Rooted, lr=lr)
        return get_params(update(0, torch.ones(2), init(torch.ones(2)))).sum()

    with pytest.raises(TypeError, match="Rooted takes a Python number of a tensor that is differentiated or mapped"):
        torch.func.grad(after)(torch.tensor(0.1))
    assert after(torch.tensor(0.25)) == 1.0


def test_unreadable_option_must_be_one_of_the_rule():
    with pytest.raises(TypeError, match="SGD takes no tensor that is mapped as 'rho'"):
        torch.func.vmap(lambda rho: as_functions(SGD, rho=rho).init(rho).params)(torch.ones(2))


def test_undeclared_number_in_a_state_is_refused():
    class Forgetful(ASGD):
        scalar_state = ("step",)

    with pytest.raises(TypeError, match="Declare it"):
        as_functions(Forgetful).init(torch.ones(2))


def test_master_copy_is_kept_in_float32():
    params = torch.ones(3, dtype=torch.bfloat16)
    state = run(as_functions(AdamFP16, lr=1e-4), params, [params] * 5)
    assert state.slots.tensors["fp32_copy"].dtype == torch.float32
    assert state.slots.tensors["fp32_copy"].lt(0.9996).all()
    assert state.params.equal(params)
