"""
Every word of the vocabulary gives, as a line of a kernel and on lists, what it gives on a tensor: bit for bit, with
the exceptions in `APPROXIMATE`, also where the numbers are NaN, infinite, -0 or denormal.

One rule applies all words, each to values of its own, and keeps what they give in its state. So a dtype is one kernel.
"""

import functools
import inspect
import operator

import pytest
import torch
from torch import Tensor

from optimizers import GenericAdaptiveOptimizer
from optimizers.engines.program import Program, Unrecordable
from optimizers.engines.recorder import Mask, Recorded, Tape
from optimizers.engines.tensor_list import TensorList
from tests.helpers import same
from tests.rules import READERS

S = 0.3712345

# Each word is given `p` and `g`, which it may not write, and `x`, a copy of `p` that it may.
WORDS = {
    "add": lambda p, g, x: p.add(g),
    "add_alpha": lambda p, g, x: p.add(g, alpha=S),
    "add_number": lambda p, g, x: p.add(S),
    "add_number_alpha": lambda p, g, x: p.add(2.0, alpha=S),
    "add_": lambda p, g, x: x.add_(g),
    "add_alpha_": lambda p, g, x: x.add_(g, alpha=S),
    "add_number_": lambda p, g, x: x.add_(S),
    "add_number_alpha_": lambda p, g, x: x.add_(2.0, alpha=S),
    "sub": lambda p, g, x: p.sub(g),
    "sub_alpha": lambda p, g, x: p.sub(g, alpha=S),
    "sub_number": lambda p, g, x: p.sub(S),
    "sub_number_alpha": lambda p, g, x: p.sub(2.0, alpha=S),
    "sub_": lambda p, g, x: x.sub_(g),
    "sub_alpha_": lambda p, g, x: x.sub_(g, alpha=S),
    "sub_number_": lambda p, g, x: x.sub_(S),
    "subtract": lambda p, g, x: p.subtract(g),
    "subtract_": lambda p, g, x: x.subtract_(g, alpha=S),
    "mul": lambda p, g, x: p.mul(g),
    "mul_number": lambda p, g, x: p.mul(S),
    "mul_": lambda p, g, x: x.mul_(g),
    "mul_number_": lambda p, g, x: x.mul_(S),
    "multiply": lambda p, g, x: p.multiply(g),
    "multiply_": lambda p, g, x: x.multiply_(S),
    "div": lambda p, g, x: p.div(g),
    "div_number": lambda p, g, x: p.div(S),
    "div_power_of_two": lambda p, g, x: p.div(0.25),
    "div_tiny": lambda p, g, x: p.div(1e-39),
    "div_huge": lambda p, g, x: p.div(3e38),
    "div_zero": lambda p, g, x: p.div(0.0),
    "div_infinite": lambda p, g, x: p.div(float("inf")),
    "div_": lambda p, g, x: x.div_(g),
    "div_number_": lambda p, g, x: x.div_(S),
    "divide": lambda p, g, x: p.divide(g),
    "divide_": lambda p, g, x: x.divide_(g),
    "true_divide": lambda p, g, x: p.true_divide(g),
    "pow_2": lambda p, g, x: p.pow(2),
    "pow_half": lambda p, g, x: p.pow(0.5),
    "pow_3": lambda p, g, x: p.pow(3),
    "pow_-1": lambda p, g, x: p.pow(-1),
    "pow_-2": lambda p, g, x: p.pow(-2),
    "pow_-half": lambda p, g, x: p.pow(-0.5),
    "pow_0": lambda p, g, x: p.pow(0),
    "pow_1": lambda p, g, x: p.pow(1),
    "pow_number": lambda p, g, x: p.pow(1.7),
    "pow_tensor": lambda p, g, x: p.pow(g),
    "pow_2_": lambda p, g, x: x.pow_(2),
    "pow_half_": lambda p, g, x: x.pow_(0.5),
    "pow_number_": lambda p, g, x: x.pow_(1.7),
    "pow_tensor_": lambda p, g, x: x.pow_(g),
    "maximum": lambda p, g, x: p.maximum(g),
    "minimum": lambda p, g, x: p.minimum(g),
    "addcmul": lambda p, g, x: p.addcmul(g, g),
    "addcmul_value": lambda p, g, x: p.addcmul(p, g, value=S),
    "addcmul_": lambda p, g, x: x.addcmul_(p, g),
    "addcmul_value_": lambda p, g, x: x.addcmul_(g, g, value=S),
    "addcdiv": lambda p, g, x: p.addcdiv(p, g),
    "addcdiv_value": lambda p, g, x: p.addcdiv(g, p, value=S),
    "addcdiv_": lambda p, g, x: x.addcdiv_(g, p),
    "addcdiv_value_": lambda p, g, x: x.addcdiv_(p, g, value=S),
    "lerp": lambda p, g, x: p.lerp(g, S),
    "lerp_0": lambda p, g, x: p.lerp(g, 0.0),
    "lerp_half": lambda p, g, x: p.lerp(g, 0.5),
    "lerp_0.9": lambda p, g, x: p.lerp(g, 0.9),
    "lerp_1": lambda p, g, x: p.lerp(g, 1.0),
    "lerp_negative": lambda p, g, x: p.lerp(g, -0.3),
    "lerp_2": lambda p, g, x: p.lerp(g, 2.0),
    "lerp_tensor": lambda p, g, x: p.lerp(g, p),
    "lerp_": lambda p, g, x: x.lerp_(g, S),
    "lerp_tensor_": lambda p, g, x: x.lerp_(g, g),
    "clamp": lambda p, g, x: p.clamp(-0.1, 0.2),
    "clamp_crossed": lambda p, g, x: p.clamp(0.2, -0.1),
    "clamp_low": lambda p, g, x: p.clamp(min=0.1),
    "clamp_high": lambda p, g, x: p.clamp(max=0.1),
    "clamp_tensors": lambda p, g, x: p.clamp(g, g.abs()),
    "clamp_": lambda p, g, x: x.clamp_(-0.1, 0.2),
    "clamp_low_": lambda p, g, x: x.clamp_(min=0.1),
    "clamp_nan": lambda p, g, x: p.clamp(min=float("nan")),
    "clip": lambda p, g, x: p.clip(-0.1, 0.2),
    "clip_": lambda p, g, x: x.clip_(max=0.1),
    "clamp_min": lambda p, g, x: p.clamp_min(0.1),
    "clamp_min_tensor": lambda p, g, x: p.clamp_min(g),
    "clamp_min_": lambda p, g, x: x.clamp_min_(0.0),
    "clamp_max": lambda p, g, x: p.clamp_max(0.1),
    "clamp_max_tensor": lambda p, g, x: p.clamp_max(g),
    "clamp_max_": lambda p, g, x: x.clamp_max_(0.0),
    "sqrt": lambda p, g, x: p.sqrt(),
    "sqrt_": lambda p, g, x: x.sqrt_(),
    "rsqrt": lambda p, g, x: p.rsqrt(),
    "rsqrt_": lambda p, g, x: x.rsqrt_(),
    "reciprocal": lambda p, g, x: p.reciprocal(),
    "reciprocal_": lambda p, g, x: x.reciprocal_(),
    "square": lambda p, g, x: p.square(),
    "square_": lambda p, g, x: x.square_(),
    "abs": lambda p, g, x: p.abs(),
    "abs_": lambda p, g, x: x.abs_(),
    "absolute": lambda p, g, x: p.absolute(),
    "sign": lambda p, g, x: p.sign(),
    "sign_": lambda p, g, x: x.sign_(),
    "neg": lambda p, g, x: p.neg(),
    "neg_": lambda p, g, x: x.neg_(),
    "negative": lambda p, g, x: p.negative(),
    "exp": lambda p, g, x: p.exp(),
    "exp_": lambda p, g, x: x.exp_(),
    "log": lambda p, g, x: p.log(),
    "log_": lambda p, g, x: x.log_(),
    "tanh": lambda p, g, x: p.tanh(),
    "tanh_": lambda p, g, x: x.tanh_(),
    "lt": lambda p, g, x: g * p.lt(g),
    "le": lambda p, g, x: g * p.le(g),
    "gt": lambda p, g, x: g * p.gt(g),
    "ge": lambda p, g, x: g * p.ge(g),
    "eq": lambda p, g, x: g * p.eq(g),
    "ne": lambda p, g, x: g * p.ne(g),
    "lt_number": lambda p, g, x: g * p.lt(S),
    "clone": lambda p, g, x: p.clone(),
    "copy_": lambda p, g, x: x.copy_(g),
    "fill_": lambda p, g, x: x.fill_(S),
    "zero_": lambda p, g, x: x.zero_(),
    "where": lambda p, g, x: p.where(p > g, g),
    "where_number": lambda p, g, x: p.where(p > 0, S),
    "detach": lambda p, g, x: p.detach().add(g),
    "data": lambda p, g, x: p.data.add(g.data),
    "type_as": lambda p, g, x: (p > g).type_as(p).add(g),
    "p + g": lambda p, g, x: p + g,
    "p + s": lambda p, g, x: p + S,
    "s + p": lambda p, g, x: S + p,
    "p - g": lambda p, g, x: p - g,
    "p - s": lambda p, g, x: p - S,
    "s - p": lambda p, g, x: S - p,
    "p * g": lambda p, g, x: p * g,
    "s * p": lambda p, g, x: S * p,
    "p / g": lambda p, g, x: p / g,
    "p / s": lambda p, g, x: p / S,
    "s / p": lambda p, g, x: S / p,
    "1 / p": lambda p, g, x: 1 / p,
    "p ** 2": lambda p, g, x: p**2,
    "p ** s": lambda p, g, x: p**S,
    "p ** g": lambda p, g, x: p**g,
    "s ** p": lambda p, g, x: S**p,
    "2 ** p": lambda p, g, x: 2**p,
    "-p": lambda p, g, x: -p,
    "abs(p)": lambda p, g, x: abs(p),
    "p < g": lambda p, g, x: (p < g) * g,
    "p <= g": lambda p, g, x: (p <= g) * g,
    "p > g": lambda p, g, x: (p > g) * g,
    "p >= g": lambda p, g, x: (p >= g) * g,
    "p == g": lambda p, g, x: (p == g) * g,
    "p != g": lambda p, g, x: (p != g) * g,
    "s < p": lambda p, g, x: (S < p) * g,
    "x += g": lambda p, g, x: x.__iadd__(g),
    "x -= g": lambda p, g, x: x.__isub__(g),
    "x -= s": lambda p, g, x: x.__isub__(S),
    "x *= g": lambda p, g, x: x.__imul__(g),
    "x /= g": lambda p, g, x: x.__itruediv__(g),
    "x **= 2": lambda p, g, x: x.__ipow__(2),
    "torch.add": lambda p, g, x: torch.add(p, g, alpha=S),
    "torch.sub": lambda p, g, x: torch.sub(p, g, alpha=S),
    "torch.mul": lambda p, g, x: torch.mul(p, g),
    "torch.div": lambda p, g, x: torch.div(p, g),
    "torch.maximum": lambda p, g, x: torch.maximum(p, g),
    "torch.minimum": lambda p, g, x: torch.minimum(p, g),
    "torch.addcmul": lambda p, g, x: torch.addcmul(p, g, g, value=S),
    "torch.addcdiv": lambda p, g, x: torch.addcdiv(p, g, p, value=S),
    "torch.lerp": lambda p, g, x: torch.lerp(p, g, S),
    "torch.clamp": lambda p, g, x: torch.clamp(p, min=-0.1, max=0.2),
    "torch.clamp_min": lambda p, g, x: torch.clamp(p, min=-0.1),
    "torch.sqrt": lambda p, g, x: torch.sqrt(p),
    "torch.rsqrt": lambda p, g, x: torch.rsqrt(p),
    "torch.reciprocal": lambda p, g, x: torch.reciprocal(p),
    "torch.square": lambda p, g, x: torch.square(p),
    "torch.abs": lambda p, g, x: torch.abs(p),
    "torch.sign": lambda p, g, x: torch.sign(p),
    "torch.neg": lambda p, g, x: torch.neg(p),
    "torch.exp": lambda p, g, x: torch.exp(p),
    "torch.log": lambda p, g, x: torch.log(p),
    "torch.tanh": lambda p, g, x: torch.tanh(p),
    "torch.pow": lambda p, g, x: torch.pow(p, 2),
    "torch.clone": lambda p, g, x: torch.clone(p),
    "torch.lt": lambda p, g, x: torch.lt(p, g) * g,
    "torch.where": lambda p, g, x: torch.where(p > g, p, g),
    "torch.where_number": lambda p, g, x: torch.where(p > 0, 0.5, g),
    "torch.where_numbers": lambda p, g, x: torch.where(p > g, 0.5, 2.0) * g,
    "torch.zeros_like": lambda p, g, x: torch.zeros_like(p).add_(g),
    "torch.ones_like": lambda p, g, x: torch.ones_like(p).mul_(g),
    "torch.full_like": lambda p, g, x: torch.full_like(p, S),
    "out=": lambda p, g, x: torch.maximum(p, g, out=x),
    "out= of a unary": lambda p, g, x: torch.sqrt(p, out=x),
    "out= is an operand": lambda p, g, x: torch.add(x, g, out=x),
    "out= gives what it wrote": lambda p, g, x: (torch.mul(p, g, out=x), x)[1],
}

#: Largest distance in ULP from torch, for what torch itself does not round correctly or a kernel does another way. The
#: rest is exact.
APPROXIMATE = {
    "div_number": 1,
    "div_number_": 1,
    "div_tiny": 1,
    "div_huge": 1,
    "p / s": 1,
    "sqrt": 1,
    "rsqrt": 1,
    "exp": 2,
    "log": 2,
    "tanh": 3,
    "pow": 2,
}
EXTREMES = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 1e-310, 1e38, -1e38, 1e-20]
EXTREMES += [1.0, -1.0, 0.5, 2.0, 3.0, -2.0]


class EveryWord(GenericAdaptiveOptimizer):
    """Keeps what each word gives in a state of its own."""

    def step_param(self, state, group, grad, param):
        for number, word in enumerate(WORDS.values()):
            state[f"word_{number}"] = word(param, grad, param.clone())


def numbers(dtype):
    """Two tensors: draws over many sizes, then each extreme with each."""
    generator = torch.Generator().manual_seed(3)
    sizes = 10.0 ** torch.linspace(-6, 6, 3001, dtype=torch.float64)
    drawn = [torch.randn(3001, generator=generator, dtype=torch.float64) * sizes[torch.randperm(3001)] for _ in "pg"]
    mild = [torch.randn(3001, generator=generator, dtype=torch.float64) for _ in "pg"]
    extremes = torch.tensor(EXTREMES, dtype=torch.float64)
    grids = torch.meshgrid(extremes, extremes, indexing="ij")
    return [torch.cat([d, m, e.flatten()]).to(dtype) for d, m, e in zip(drawn, mild, grids, strict=True)]


@functools.cache
def results(dtype, reader):
    torch.manual_seed(0)
    x, y = numbers(dtype)
    p = torch.nn.Parameter(x.clone())
    p.grad = y.clone()
    optimizer = EveryWord([p], READERS[reader], lr=1.0)
    optimizer.step()
    assert {e.reader for e in optimizer.explain().entries} == {reader}
    assert same(p, x)
    assert same(p.grad, y)
    return {name: optimizer.state[p][f"word_{i}"] for i, name in enumerate(WORDS)}


def without_nan(one, two):
    """Both with a zero wherever both are NaN: the sign and the payload of a NaN mean nothing."""
    nan = one.isnan() & two.isnan()
    return one.masked_fill(nan, 0), two.masked_fill(nan, 0)


def ulps(one: Tensor, two: Tensor) -> int:
    """How many representable numbers lie between the two that are farthest apart. 0 and -0 are one."""
    one, two = without_nan(one, two)
    if bool((one.isnan() | two.isnan()).any()):
        return 2**63
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[one.dtype]
    a, b = one.view(integer).tolist(), two.view(integer).tolist()
    lowest = torch.iinfo(integer).min
    return max(abs((lowest - i if i < 0 else i) - (lowest - j if j < 0 else j)) for i, j in zip(a, b, strict=True))


def bound(name):
    stem = name.removeprefix("torch.").split("_")[0]
    if name in ("pow_2", "pow_2_", "p ** 2", "x **= 2", "torch.pow"):
        return 0
    if name in ("pow_half", "pow_half_", "out= of a unary"):
        stem = "sqrt"
    if "**" in name:
        stem = "pow"
    return APPROXIMATE.get(name, APPROXIMATE.get(stem, 0))


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
all_words = pytest.mark.parametrize("name", WORDS)


@dtypes
@all_words
def test_word_of_a_kernel_gives_what_it_gives_on_a_tensor(name, dtype):
    got, want = results(dtype, "fused")[name], results(dtype, "single")[name]
    assert got.dtype == want.dtype
    if bound(name):
        assert ulps(got, want) <= bound(name)
    else:
        assert same(*without_nan(got, want))


@dtypes
@all_words
def test_word_on_lists_gives_what_it_gives_on_a_tensor(name, dtype):
    got, want = results(dtype, "foreach")[name], results(dtype, "single")[name]
    assert same(*without_nan(got, want))


class EveryWordInPlace(GenericAdaptiveOptimizer):
    """The words that write do so in a tensor of the state, which is there before the step."""

    def init_state(self, state, group, param):
        for number, name in enumerate(WORDS):
            if writes(name):
                state[f"word_{number}"] = param.detach().clone()

    def step_param(self, state, group, grad, param):
        for number, (name, word) in enumerate(WORDS.items()):
            if writes(name):
                word(param, grad, state[f"word_{number}"])


def writes(name):
    return name.endswith("_") or name.startswith(("x ", "out="))


@dtypes
@pytest.mark.parametrize("reader", ["foreach", "fused"])
def test_word_that_writes_stores_what_it_gives(reader, dtype):
    x, y = numbers(dtype)
    p = torch.nn.Parameter(x.clone())
    p.grad = y.clone()
    optimizer = EveryWordInPlace([p], READERS[reader], lr=1.0)
    before = {}
    EveryWordInPlace.init_state(optimizer, before, {}, p)
    optimizer.step()
    assert len(before) > 30
    for number, name in enumerate(WORDS):
        if writes(name):
            got, want = optimizer.state[p][f"word_{number}"], results(dtype, reader)[name]
            assert same(*without_nan(got, want)), name


# ## Masks


def stepped(rule, reader, dtype=torch.float64):
    p = torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=dtype))
    p.grad = torch.linspace(0.7, -0.3, 9, dtype=dtype)
    optimizer = rule([p], READERS[reader], lr=1.0)
    optimizer.step()
    return p.detach(), optimizer.state[p]


MASKS = {
    "sum": lambda p, g: g * ((p > 0) + (g > 0)),
    "product": lambda p, g: g * ((p > 0) * (g > 0)),
    "times a number": lambda p, g: g * ((p > 0) * 0.1),
    "plus a number": lambda p, g: g * ((p > 0) + 0.1),
    "divided": lambda p, g: g * ((p > 0) / 3),
    "of masks": lambda p, g: g * ((p > 0) == (g > 0)),
    "where of numbers": lambda p, g: g * torch.where(p > 0, 0.1, 0.3),
}


@pytest.mark.parametrize("reader", ["foreach", "fused", "default"])
@pytest.mark.parametrize("name", MASKS)
def test_arithmetic_on_masks_is_that_of_tensors(name, reader):
    class Masked(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.copy_(MASKS[name](param, grad))

    readers = {**READERS, "default": {}}
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    p.grad = torch.linspace(0.7, -0.3, 9, dtype=torch.float64)
    q.grad = p.grad.clone()
    Masked([p], readers["single"], lr=1.0).step()
    try:
        Masked([q], readers[reader], lr=1.0).step()
    except RuntimeError:
        assert reader == "fused"  # Asked for and refused is right, too.
    else:
        assert (p - q).abs().max() <= 4e-16


@pytest.mark.parametrize("reader", ["foreach", "fused"])
def test_mask_kept_in_the_state_serves_later_steps(reader):
    class Sticky(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            if "mask" in state:
                grad = torch.where(state["mask"], grad, 0.0)
            state["mask"] = param > 0
            param.sub_(grad)

    def path(reader):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 9))
        optimizer = Sticky([p], READERS[reader], lr=1.0)
        for factor in (1.0, -2.0, 3.0, 0.5):
            p.grad = torch.linspace(0.7, -0.3, 9) * factor
            optimizer.step()
        return p.detach(), optimizer.state[p]["mask"]

    (p, mask), (q, want) = path(reader), path("single")
    assert same(p, q)
    assert torch.equal(mask.bool(), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reader", ["foreach", "fused"])
def test_comparison_becomes_a_number_of_the_dtype_of_the_parameter(reader, dtype):
    class Halved(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.sub_((param > 0).to(param.dtype) * 0.5 * grad)

    def path(reader):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=dtype))
        p.grad = torch.linspace(0.7, -0.3, 9, dtype=dtype)
        optimizer = Halved([p], READERS[reader], lr=1.0)
        optimizer.step()
        assert optimizer.explain().entries[0].reader == reader
        return p.detach()

    assert same(path(reader), path("single"))


@pytest.mark.parametrize(
    "look",
    [lambda dtype: dtype == torch.float32, lambda dtype: {torch.float32: 1}[dtype], lambda dtype: dtype.itemsize],
    ids=["compared", "looked-up", "asked"],
)
def test_rule_that_looks_at_the_dtype_is_refused_with_the_reason(look):
    class Choosy(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.sub_(grad if look(param.dtype) else -grad)

    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"the dtype of a tensor is looked at.*read once for all dtypes"):
        Choosy([p], READERS["fused"], lr=1.0).step()


# ## The three vocabularies


def public(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def operators(cls):
    """The dunder methods that a class adds to those of `object`, without Python's own machinery."""
    refused = Recorded._no_operator
    own = {name for c in cls.__mro__[:-1] for name, x in vars(c).items() if name.startswith("__") and x is not refused}
    return own - {"__module__", "__slots__", "__init__", "__getattr__", "__doc__", "__hash__"} - LOOKS


LOOKS = {f"__{name}__" for name in ("bool", "float", "int", "index", "len", "iter", "contains")}


def test_lists_have_every_word_of_the_recorder():
    made_from_nothing = {"zeros_like", "ones_like", "full_like"}
    look = {"item", "tolist", "id"}
    assert public(Recorded) - made_from_nothing - look - public(TensorList) == set()
    assert operators(Recorded) - operators(TensorList) == set()


def test_recorder_has_every_word_of_the_lists():
    assert public(TensorList) - public(Recorded) - public(Mask) == {"tensors"}
    assert operators(TensorList) - operators(Recorded) - operators(Mask) == set()


def test_every_word_of_the_recorder_is_one_of_a_tensor():
    made_from_nothing = {"zeros_like", "ones_like", "full_like"}
    assert public(Recorded) - public(Tensor) - made_from_nothing - {"id"} == set()


def test_table_of_this_file_has_every_word():
    aliases = {"float", "double", "half", "bfloat16", "to"}
    source = inspect.getsource(inspect.getmodule(test_table_of_this_file_has_every_word)).split("class EveryWord")[0]
    missing = {n for n in public(Recorded) - aliases - {"id", "item", "tolist"} if f".{n}(" not in source}
    assert missing - {"data", "dtype", "is_sparse"} == set()


# ## The tape


def read(rule, tape=None, names=("v",)):
    tape = tape or Tape(("param", "grad", *names))
    state = tape.state({})
    tape.rewind()
    rule(state, tape.param, tape.grad)
    return tape


def size(node):
    return 1 + sum(map(size, node.values()))


def branching(number):
    def rule(state, p, g):
        v = state["v"]
        v.mul_(0.5).add_(g, alpha=number)
        if number > 3:
            v.clamp_(max=number)
        p.sub_(v.sqrt().add_(1e-8))

    return rule


def test_second_reading_ends_at_the_same_node_and_grows_nothing():
    tape = read(branching(1.0))
    node, grown = tape.node, size(tape.root)
    for number in (2.0, 2.5, 3.0):
        assert read(branching(number), tape).node is node
    assert size(tape.root) == grown


def test_reading_of_every_word_again_ends_at_the_same_node():
    def every(state, p, g):
        for word in WORDS.values():
            word(p, g, p.clone())

    tape = read(every)
    node, grown, scalars = tape.node, size(tape.root), tape.scalars
    read(every, tape)
    assert tape.node is node
    assert size(tape.root) == grown
    assert repr(tape.scalars) == repr(scalars)


def test_another_branch_is_another_node_and_both_are_kept():
    tape = read(branching(1.0))
    first = tape.node
    second = read(branching(4.0), tape).node
    assert second is not first
    assert read(branching(2.0), tape).node is first
    assert read(branching(5.0), tape).node is second


def test_program_of_a_node_is_made_once():
    tape = read(branching(1.0))
    program = tape.program(tape.node)
    assert isinstance(program, Program)
    assert tape.program(read(branching(2.0), tape).node) is program


NUMBERS = {
    "addcmul": (lambda p, g: p.addcmul_(g, g, value=3.0), [3.0]),
    "add with alpha and number": (lambda p, g: p.add_(2.0, alpha=3.0), [2.0, 3.0]),
    "sub with alpha": (lambda p, g: p.sub_(g, alpha=3.0), [3.0]),
    "clamp": (lambda p, g: p.clamp_(2.0, 3.0), [2.0, 3.0]),
    "clamp by name": (lambda p, g: p.clamp_(max=3.0, min=2.0), [2.0, 3.0]),
    "where": (lambda p, g: torch.where(p > 1.0, 2.0, 3.0), [1.0, 2.0, 3.0]),
    "reflected": (lambda p, g: 2.0 - p * 1.0, [1.0, 2.0]),
    "reflected quotient": (lambda p, g: 2.0 / p.add(1.0), [1.0, 2.0]),
    "nested": (lambda p, g: p.add_(g.mul(1.0), alpha=2.0).mul_(3.0), [1.0, 2.0, 3.0]),
    "lerp": (lambda p, g: p.lerp_(g.add(1.0), 2.0), [1.0, 2.0]),
    "power": (lambda p, g: p.pow(2).pow(0.5).pow(3.0), [3.0]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_gathered_in_the_order_in_which_the_program_takes_them(name):
    word, expected = NUMBERS[name]
    tape = read(lambda state, p, g: word(p, g))
    assert tape.scalars == expected
    assert tape.program(tape.node).numbers == len(expected)


def test_program_stores_what_changed_and_nothing_else():
    def rule(state, p, g):
        g.mul(2.0)
        state["v"].mul_(0.5)
        state["new"] = g.clone()

    tape = read(rule, names=("v", "w"))
    program = tape.program(tape.node)
    assert set(program.stores) == {program.leaves.index("v")}
    assert set(program.new_state) == {"new"}


def test_reading_does_not_remember_the_objects_of_the_one_before():
    def rule(state, p, g):
        p.mul_(2.0)
        p.add_(g)

    tape = read(rule)
    first = [step.operands for step in tape.program(tape.node).steps]
    again = read(rule, Tape(("param", "grad", "v")))
    assert [step.operands for step in again.program(again.node).steps] == first
    assert read(rule, tape).node.program is not None


def test_step_of_a_program_names_the_line_of_the_rule():
    tape = read(branching(1.0))
    steps = tape.program(tape.node).steps
    assert all(step.source.startswith("test_recorder.py:") for step in steps)
    assert "v.mul_(0.5).add_(g, alpha=number)" in steps[0].source


WRITES = {
    "in place": lambda g: g.mul_(2.0),
    "through detach": lambda g: g.detach().add_(1.0),
    "through data": lambda g: g.data.neg_(),
    "by out=": lambda g: torch.sqrt(g, out=g),
    "by an operator": lambda g: g.__iadd__(1.0),
    "after a mild start": lambda g: g.mul(2.0) is g or g.zero_(),
    "by copy_": lambda g: g.copy_(g.mul(2.0)),
    "through to": lambda g: g.float().mul_(2.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_write_through_the_gradient_is_refused(name):
    with pytest.raises(
        Unrecordable, match=r"writes through the gradient.*test_recorder\.py|test_recorder\.py.*gradient"
    ):
        read(lambda state, p, g: WRITES[name](g))


def test_refused_write_is_refused_at_each_reading():
    tape = Tape(("param", "grad", "v"))
    for _ in range(3):
        with pytest.raises(Unrecordable, match="writes through the gradient"):
            read(lambda state, p, g: g.mul_(2.0), tape)


LOOKING = {
    "if": lambda p: 1 if p > 0 else 2,
    "float": float,
    "int": int,
    "item": lambda p: p.item(),
    "tolist": lambda p: p.tolist(),
    "iterate": list,
    "len": len,
    "max": lambda p: max(p, 0),
    "range": lambda p: range(p),
    "in": lambda p: 1.0 in p,
    "and": lambda p: p > 0 and p,
}


@pytest.mark.parametrize("name", LOOKING)
def test_look_at_a_value_is_refused(name):
    with pytest.raises(Unrecordable, match="looked at"):
        read(lambda state, p, g: LOOKING[name](p))


OUTSIDE = {
    "norm": lambda p, g: p.norm(),
    "sum": lambda p, g: g.sum(),
    "torch.sum": lambda p, g: torch.sum(g),
    "torch.linalg.norm": lambda p, g: torch.linalg.norm(g),
    "shape": lambda p, g: p.shape,
    "view": lambda p, g: p.view(-1),
    "t": lambda p, g: p @ p.t(),
    "matmul": lambda p, g: p @ g,
    "torch.matmul": lambda p, g: torch.matmul(p, g),
    "index": lambda p, g: g[0],
    "write at an index": lambda p, g: p.__setitem__(0, 1.0),
    "assignment at an index": lambda p, g: operator.setitem(p, 0, 1.0),
    "floor division": lambda p, g: p // 2,
    "reflected floor division": lambda p, g: 2 // p,
    "modulo": lambda p, g: p % 2,
    "xor": lambda p, g: (p > 0) ^ (g > 0),
    "rounding mode": lambda p, g: p.div(g, rounding_mode="trunc"),
    "floor": lambda p, g: p.floor(),
    "torch.pow of a number": lambda p, g: torch.pow(2.0, p),
    "random": lambda p, g: torch.rand_like(p),
    "tensor operand": lambda p, g: p.mul_(torch.ones(3)),
    "tensor operand first": lambda p, g: torch.ones(3) * p,
    "tensor operand of where": lambda p, g: torch.where(p > 0, torch.ones(3), p),
    "tensor condition": lambda p, g: torch.where(torch.ones(3) > 0, p, g),
    "tensor in the state": lambda p, g: p.addcmul_(g, torch.ones(3)),
    "foreach": lambda p, g: getattr(torch, "_foreach" + "_add")([p], [g]),
    "stack": lambda p, g: torch.stack([p, g]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_no_kernel_does_is_refused_by_name_and_line(name):
    with pytest.raises(Unrecordable, match=r"test_recorder\.py:\d+"):
        read(lambda state, p, g: OUTSIDE[name](p, g))


HARMLESS = {
    "clone with a memory format": lambda p, g: g.clone(memory_format=torch.preserve_format),
    "torch.clone with a memory format": lambda p, g: torch.clone(g, memory_format=torch.preserve_format),
    "copy_ not blocking": lambda p, g: p.copy_(g, non_blocking=True),
    "zeros_like with a memory format": lambda p, g: torch.zeros_like(p, memory_format=torch.preserve_format),
    "clamp_min by name": lambda p, g: p.clamp_min(min=0.0),
    "torch.clamp_max by name": lambda p, g: torch.clamp_max(p, max=0.0),
    "fill_ by name": lambda p, g: p.fill_(value=1.0),
    "addcmul by name": lambda p, g: p.addcmul(tensor1=g, tensor2=g, value=2.0),
    "pow by name": lambda p, g: p.pow(exponent=2),
    "lerp by name": lambda p, g: p.lerp(end=g, weight=0.5),
    "rounding mode None": lambda p, g: p.div(g, rounding_mode=None),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_argument_as_torch_writes_it_is_taken_or_refused_but_never_an_error_of_its_own(name):
    try:
        read(lambda state, p, g: HARMLESS[name](p, g))
    except Unrecordable as error:
        assert "test_recorder.py:" in str(error)  # noqa: PT017 - refusing is as good as taking


@pytest.mark.parametrize("word", ["sqrt", "addcmul_", "mul_", "lerp_"])
def test_the_same_word_twice_is_two_operations(word):
    def twice(state, p, g):
        arguments = {"sqrt": (), "addcmul_": (g, g), "mul_": (0.5,), "lerp_": (g, 0.5)}[word]
        for values in ({}, {"value": 2.0}) if word == "addcmul_" else ({}, {}):
            getattr(p, word)(*arguments, **values)

    tape = read(twice)
    first = tape.program(tape.node)
    assert len(first.steps) == 2
    read(twice, tape)
    assert tape.program(tape.node) is first


def test_branch_that_parts_at_the_same_word_is_not_taken_for_the_newest():
    def rule(value):
        def steps(state, p, g):
            p.addcmul_(g, g) if value is None else p.addcmul_(g, g, value=value)
            p.mul_(2.0).lerp_(g, 0.5)

        return steps

    tape = read(rule(None))
    plain = tape.node
    read(rule(0.5), tape)
    scaled = tape.node
    assert scaled is not plain
    assert tape.program(scaled).numbers == tape.program(plain).numbers + 1
    for value, node in ((None, plain), (0.5, scaled), (None, plain)):
        read(rule(value), tape)
        assert tape.node is node
