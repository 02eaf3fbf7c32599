r"""
Where labml's optimizers are right, ours move as they do. Where they are wrong, a test names the bug, shows that labml's
has it, and that ours has not.

labml's side runs its own code, tensor by tensor. One line is written in two ways: labml has
$m \leftarrow \beta_1 m + (1 - \beta_1) g$, ours is torch's `lerp`. With $\beta_1 = 0$ both are $g$, and most rules
agree bit for bit. Otherwise they differ by `LAST_DIGITS`.
"""

import importlib
import io
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import numpy as np
import pytest
import torch

from optimizers import (
    AdaBelief,
    Adam,
    AdamWarmup,
    AdamWarmupCosineDecay,
    AMSGrad,
    GenericAdaptiveOptimizer,
    Noam,
    RAdam,
    Sophia,
    WeightDecay,
)
from optimizers.adam_fp16 import AdamFP16, GradScalerFP16
from tests import helpers
from tests.helpers import same
from tests.rules import EXACT, READERS

#: Each page of labml's that is a rule, with its class and ours.
PAGES = {
    "adam": ("Adam", Adam),
    "amsgrad": ("AMSGrad", AMSGrad),
    "radam": ("RAdam", RAdam),
    "ada_belief": ("AdaBelief", AdaBelief),
    "adam_warmup": ("AdamWarmup", AdamWarmup),
    "adam_warmup_cosine_decay": ("AdamWarmupCosineDecay", AdamWarmupCosineDecay),
    "noam": ("Noam", Noam),
    "sophia": ("Sophia", Sophia),
    "adam_fp16": ("AdamFP16", AdamFP16),
}


def labmls(page):
    """The class of a page of labml's."""
    return getattr(importlib.import_module(f"labml_nn.optimizers.{page}"), PAGES[page][0])


with warnings.catch_warnings():
    # labml has LaTeX in docstrings that are not raw. Whoever compiles them first is told so.
    for category in (DeprecationWarning, SyntaxWarning):
        warnings.filterwarnings("ignore", ".*invalid escape sequence", category)
    labml = pytest.importorskip("labml_nn.optimizers")
    THEIRS = {page: labmls(page) for page in PAGES}

pytestmark = [
    pytest.mark.slow,
    # The same, where a page is read anew and Python may not keep what it compiled.
    pytest.mark.filterwarnings("ignore:.*invalid escape sequence"),
]

STEPS = 50
#: In ULP of the largest number on the way, after all the steps. At most 2 were seen.
LAST_DIGITS = 10
DECAYS = {"no-decay": (0.0,), "l2": (0.1, False), "decoupled": (0.1,), "absolute": (0.01, True, True)}

all_readers = pytest.mark.parametrize("reader", READERS)
exact_readers = pytest.mark.parametrize("reader", sorted(EXACT))
scheduled_pages = pytest.mark.parametrize("page", ["adam_warmup", "adam_warmup_cosine_decay", "noam"])


# ## labml's rules as they were meant


def mended_belief(params, *, amsgrad=False, optimized_update=True, **options):
    """labml's AdaBelief, with the arguments where they belong."""
    optimizer = THEIRS["ada_belief"](params, **options)
    optimizer.optimized_update, optimizer.degenerated_to_sgd = optimized_update, True
    optimizer.param_groups[0]["amsgrad"] = amsgrad
    return optimizer


class WithoutExtra:
    """Takes away the 1e-8 that labml adds to the learning rate of a warm-up."""

    def get_lr(self, state, group):
        return super().get_lr(state, group) - (1e-8 if state["step"] < group["warmup"] else 0)


class MendedWarmup(WithoutExtra, THEIRS["adam_warmup"]):
    pass


class MendedCosine(WithoutExtra, THEIRS["adam_warmup_cosine_decay"]):
    pass


# ## The table


@dataclass(frozen=True)
class Pair:
    """
    Our class and labml's, with options that both take. They are also the keys of our groups.

    With `same_operations` both do the same arithmetic, but for the average of gradients. A `scheduled` rule changes its
    learning rate, which labml's decoupled decay doesn't follow.
    """

    name: str
    ours: type[torch.optim.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    same_operations: bool = True
    scheduled: bool = False

    def __str__(self):
        return self.name


def _forms(name, ours, theirs, *, same_operations=True, scheduled=False, **options):
    """Algorithm 1 of the Adam paper, and its reordered form."""
    return [
        Pair(f"{name}-{form}", ours, theirs, {"optimized_update": reordered, **options}, same_operations, scheduled)
        for form, reordered in (("plain", False), ("reordered", True))
    ]


_OWN = {"same_operations": False}
_CALM = {"amsgrad": True, "degenerated_to_sgd": False, **_OWN}
_FREE = {"amsgrad": True, "rectify": False, **_OWN}
_WARM = {"scheduled": True, "warmup": 10}

PAIRS = [
    *_forms("adam", Adam, THEIRS["adam"]),
    *_forms("amsgrad", AMSGrad, THEIRS["amsgrad"]),
    *_forms("radam", RAdam, THEIRS["radam"], **_OWN),
    *_forms("radam-amsgrad-calm", RAdam, THEIRS["radam"], **_CALM),
    *_forms("adabelief", AdaBelief, mended_belief, **_OWN),
    *_forms("adabelief-amsgrad-unrectified", AdaBelief, mended_belief, **_FREE),
    *_forms("warmup", AdamWarmup, MendedWarmup, **_WARM, **_OWN),
    *_forms("cosine", AdamWarmupCosineDecay, MendedCosine, **_WARM, **_OWN, total_steps=STEPS),
    *_forms("noam", Noam, THEIRS["noam"], **_WARM, d_model=64),
    Pair("sophia", Sophia, THEIRS["sophia"], {"rho": 0.5}),
]

#: Every pair with each way to decay that means the same in both.
CASES = [
    pytest.param(pair, decay, id=f"{pair}-{decay}")
    for pair in PAIRS
    for decay in DECAYS
    if not (pair.scheduled and decay == "decoupled")
]

all_pairs = pytest.mark.parametrize("pair", PAIRS, ids=str)
all_cases = pytest.mark.parametrize(("pair", "decay"), CASES)
cases_of_same_operations = pytest.mark.parametrize(
    ("pair", "decay"), [case for case in CASES if case.values[0].same_operations]
)


def build(pair, reader, decay="no-decay", betas=(0.9, 0.99)):
    """Our optimizer with its parameters, and labml's with its own."""
    ours, theirs = helpers.params(), helpers.params()
    common = {"lr": 0.02, "eps": 1e-6, "betas": betas, **pair.options}
    optimizer = pair.ours(ours, weight_decay=WeightDecay(*DECAYS[decay]), **common, **READERS[reader])
    twin = pair.theirs(theirs, weight_decay=labml.WeightDecay(*DECAYS[decay]), **common)
    return optimizer, ours, twin, theirs


def run(optimizer, ps, rows):
    """Steps. Before every fifth there is an estimate of the curvature, for the rule that wants one."""
    for t, row in enumerate(rows):
        if t % 5 == 0 and hasattr(optimizer, "update_hessian"):
            for p, g in zip(ps, row, strict=True):
                p.grad = 0.3 * g.sin()
            optimizer.update_hessian(4000)
        helpers.step(optimizer, ps, row)


def carry_over(twin, theirs, optimizer, ours, **switches):
    """Save labml's optimizer, load it into ours, and tell our group what labml's checkpoint doesn't say."""
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    optimizer.param_groups[0].update(switches)
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)


def assert_as_labml(ours, theirs):
    helpers.assert_within(LAST_DIGITS, ours, theirs, helpers.params())


def same_values(ours, theirs):
    return same(helpers.values(ours), helpers.values(theirs))


# ## Where labml is right


@all_readers
@all_cases
def test_rule_moves_as_labmls_to_the_last_digits(pair, decay, reader):
    optimizer, ours, twin, theirs = build(pair, reader, decay)
    rows = helpers.gradients(ours, STEPS)
    run(optimizer, ours, rows)
    run(twin, theirs, rows)
    assert_as_labml(ours, theirs)


@exact_readers
@cases_of_same_operations
def test_rule_without_momentum_moves_as_labmls_bit_for_bit(pair, decay, reader):
    optimizer, ours, twin, theirs = build(pair, reader, decay, betas=(0.0, 0.99))
    rows = helpers.gradients(ours, STEPS)
    run(optimizer, ours, rows)
    run(twin, theirs, rows)
    assert same_values(ours, theirs)


@all_readers
@all_pairs
def test_checkpoint_of_labmls_goes_on_as_if_nothing_had_happened(pair, reader):
    optimizer, ours, twin, theirs = build(pair, reader, "no-decay" if pair.scheduled else "decoupled")
    rows = helpers.gradients(ours, STEPS)
    run(twin, theirs, rows[:25])
    carry_over(twin, theirs, optimizer, ours, decoupled_weight_decay=True, **pair.options, **READERS[reader])
    for p, q in zip(ours, theirs, strict=True):
        got, want = optimizer.state[p], dict(twin.state[q])
        assert got["step"].item() == want.pop("step") == 25
        assert all(same(got[name], want[name]) for name in want)
    run(optimizer, ours, rows[25:])
    run(twin, theirs, rows[25:])
    assert_as_labml(ours, theirs)


@exact_readers
def test_checkpoint_of_labmls_adam_goes_on_bit_for_bit_with_two_switches_set(reader):
    """labml keeps the reordered form and the decoupled decay on objects. There is no momentum here."""
    pair = next(pair for pair in PAIRS if pair.name == "adam-reordered")
    optimizer, ours, twin, theirs = build(pair, reader, "decoupled", betas=(0.0, 0.99))
    rows = helpers.gradients(ours, STEPS)
    run(twin, theirs, rows[:25])
    switches = {"optimized_update": True, "decoupled_weight_decay": True}
    carry_over(twin, theirs, optimizer, ours, **switches, **READERS[reader])
    run(optimizer, ours, rows[25:])
    run(twin, theirs, rows[25:])
    assert same_values(ours, theirs)


@pytest.fixture
def read_on_our_base(monkeypatch):
    """Reads a page of labml's anew, with our base in place of labml's. Not a word of it is changed."""
    monkeypatch.setattr(labml, "GenericAdaptiveOptimizer", GenericAdaptiveOptimizer)
    for page in PAGES:
        monkeypatch.setattr(labml, page, getattr(labml, page))
        monkeypatch.delitem(sys.modules, f"labml_nn.optimizers.{page}")
    return labmls


@all_readers
@pytest.mark.parametrize("page", [page for page in PAGES if page != "adam_fp16"])
def test_page_of_labmls_runs_on_our_base_unchanged(page, reader, read_on_our_base):
    options = {"lr": 0.02, **({"warmup": 10} if page == "noam" else {})}
    ours, theirs = helpers.params(), helpers.params()
    optimizer, twin = read_on_our_base(page)(ours, **options), THEIRS[page](theirs, **options)
    assert isinstance(optimizer, GenericAdaptiveOptimizer)
    assert not isinstance(twin, GenericAdaptiveOptimizer)
    optimizer.param_groups[0].update(READERS[reader])
    rows = helpers.gradients(ours, STEPS)
    run(optimizer, ours, rows)
    run(twin, theirs, rows)
    if reader in EXACT:
        assert same_values(ours, theirs)
    else:
        assert_as_labml(ours, theirs)


# ## labml's bugs: arguments and groups


def test_belief_takes_its_arguments_where_labmls_has_them_one_place_off():
    """By its defaults labml's is AMSGrad in the plain form, and stands still for five steps."""
    ours, meant, theirs = helpers.params(), helpers.params(), helpers.params()
    start, rows = helpers.values(ours), helpers.gradients(ours, STEPS)
    twin = THEIRS["ada_belief"](theirs)
    assert twin.param_groups[0]["amsgrad"]
    assert not twin.optimized_update
    assert not twin.degenerated_to_sgd
    run(twin, theirs, rows[:5])
    assert same_values(theirs, start)
    optimizer = AdaBelief(ours)
    run(optimizer, ours, rows[:1])
    assert all((p != s).all() for p, s in zip(ours, start, strict=True))
    run(optimizer, ours, rows[1:])
    run(mended_belief(meant), meant, rows)
    assert_as_labml(ours, meant)


def test_noam_moves_with_its_defaults_where_labmls_divides_by_zero():
    ours, theirs = helpers.params(), helpers.params()
    start, row = helpers.values(ours), helpers.gradients(ours, 1)[0]
    with pytest.raises(ZeroDivisionError):
        helpers.step(THEIRS["noam"](theirs), theirs, row)
    helpers.step(Noam(ours), ours, row)
    assert all((p != s).all() for p, s in zip(ours, start, strict=True))


def test_noam_keeps_the_width_of_the_model_in_the_group_where_labmls_has_one_for_all():
    groups = [{"params": helpers.params([(3,)])}, {"params": helpers.params([(3,)]), "d_model": 16}]
    optimizer, twin = Noam(groups, warmup=4), THEIRS["noam"](groups, lr=1.0, warmup=4)
    assert [twin.get_lr({"step": 4}, group) for group in twin.param_groups] == [0.5 * 512**-0.5] * 2
    assert [optimizer.get_lr({"step": 4}, group) for group in optimizer.param_groups] == [0.5 * 512**-0.5, 0.5 / 4]


@pytest.mark.parametrize("page", PAGES)
def test_defaults_of_the_caller_are_not_mutated_as_labmls_are(page):
    given, lent = {"mine": 1}, {"mine": 1}
    optimizer = PAGES[page][1](helpers.params(), defaults=given)
    THEIRS[page](helpers.params(), defaults=lent)
    assert given == {"mine": 1}
    assert optimizer.param_groups[0]["mine"] == 1
    # labml's AdaBelief takes the dictionary for a switch, so at least it leaves it alone.
    assert (lent == {"mine": 1}) == (page == "ada_belief")


def test_default_decay_cannot_be_changed_for_all_optimizers_as_labmls_can():
    one, other = THEIRS["adam"](helpers.params()), THEIRS["adam"](helpers.params())
    assert one.weight_decay is other.weight_decay
    one.weight_decay.absolute = one.weight_decay.absolute
    with pytest.raises(FrozenInstanceError):
        Adam(helpers.params()).weight_decay.absolute = True


@all_readers
def test_groups_decay_each_in_its_mode_where_labmls_have_one_for_all(reader):
    ours, theirs = helpers.params([(3,)] * 4), helpers.params([(3,)] * 4)
    start, rows = helpers.values(ours), helpers.gradients(ours, STEPS)
    common = {"lr": 0.02, "eps": 1e-6, "optimized_update": True}
    groups = [{"params": [p], "weight_decay": WeightDecay(*d)} for p, d in zip(ours, DECAYS.values(), strict=True)]
    run(Adam(groups, **common, **READERS[reader]), ours, rows)
    for i, decay in enumerate(DECAYS.values()):
        twin = THEIRS["adam"]([theirs[i]], weight_decay=labml.WeightDecay(*decay), **common)
        run(twin, [theirs[i]], [[row[i]] for row in rows])
    helpers.assert_within(LAST_DIGITS, ours, theirs, start)


def test_checkpoint_tells_the_modes_of_decay_apart_where_labmls_does_not():
    def saved(cls, decay):
        return cls(helpers.params(), weight_decay=decay).state_dict()

    labml_adam = THEIRS["adam"]
    assert saved(labml_adam, labml.WeightDecay(0.1, False)) == saved(labml_adam, labml.WeightDecay(0.1, True))
    assert saved(Adam, WeightDecay(0.1, False)) != saved(Adam, WeightDecay(0.1, True))


# ## labml's bugs: schedules


@all_readers
@pytest.mark.parametrize("page", ["adam_warmup", "adam_warmup_cosine_decay"])
def test_warmup_to_zero_moves_nothing_where_labmls_adds_a_little(page, reader):
    ours, theirs = helpers.params(), helpers.params()
    start, rows = helpers.values(ours), helpers.gradients(ours, 5)
    run(THEIRS[page](theirs, lr=0.0, warmup=10), theirs, rows)
    assert all((p != s).all() for p, s in zip(theirs, start, strict=True))
    run(PAGES[page][1](ours, lr=0.0, warmup=10, **READERS[reader]), ours, rows)
    assert same_values(ours, start)


def test_cosine_stays_low_after_the_last_step_where_labmls_rises_again():
    options = {"lr": 1.0, "warmup": 0, "total_steps": 10}
    optimizer = AdamWarmupCosineDecay(helpers.params(), **options)
    twin = THEIRS["adam_warmup_cosine_decay"](helpers.params(), **options)

    def rates(o):
        return [o.get_lr({"step": t}, o.param_groups[0]) for t in range(31)]

    assert rates(optimizer)[:11] == rates(twin)[:11]
    assert rates(optimizer)[10:] == [0.1] * 21
    assert rates(twin)[20] == 1.0


@all_readers
@scheduled_pages
def test_decoupled_decay_follows_the_schedule_where_labmls_takes_the_full_rate(page, reader):
    ours, theirs = helpers.params(), helpers.params()
    start, zeros = helpers.values(ours), [torch.zeros_like(p) for p in ours]
    optimizer = PAGES[page][1](ours, lr=0.5, warmup=10, weight_decay=WeightDecay(0.1), **READERS[reader])
    twin = THEIRS[page](theirs, lr=0.5, warmup=10, weight_decay=labml.WeightDecay(0.1))
    helpers.step(optimizer, ours, zeros)
    helpers.step(twin, theirs, zeros)
    lr = optimizer.get_lr({"step": 1}, optimizer.param_groups[0])
    assert lr <= 0.05
    assert same_values(ours, [s * (1 - lr * 0.1) for s in start])
    assert same_values(theirs, [s * (1 - 0.5 * 0.1) for s in start])


# ## Half precision

halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def build_fp16(dtype, reader, decay="no-decay", betas=(0.9, 0.99)):
    ours, theirs = helpers.params(dtype=dtype), helpers.params(dtype=dtype)
    common = {"lr": 0.02, "eps": 1e-6, "betas": betas, "optimized_update": True}
    optimizer = AdamFP16(ours, weight_decay=WeightDecay(*DECAYS[decay]), **common, **READERS.get(reader, {}))
    twin = THEIRS["adam_fp16"](theirs, weight_decay=labml.WeightDecay(*DECAYS[decay]), **common)
    return optimizer, ours, twin, theirs


def masters(optimizer, ps):
    return [optimizer.state[p]["fp32_copy"] for p in ps]


@halves
@pytest.mark.parametrize("reader", [*READERS, "default"])
@pytest.mark.parametrize("decay", DECAYS)
def test_master_copies_move_as_labmls_to_the_last_digits(decay, reader, dtype):
    optimizer, ours, twin, theirs = build_fp16(dtype, reader, decay)
    start, rows = [p.detach().float() for p in ours], helpers.gradients(ours, STEPS)
    run(optimizer, ours, rows)
    run(twin, theirs, rows)
    helpers.assert_within(LAST_DIGITS, masters(optimizer, ours), masters(twin, theirs), start)
    assert same_values(ours, [master.to(dtype) for master in masters(optimizer, ours)])


@halves
@exact_readers
def test_fp16_without_momentum_moves_as_labmls_bit_for_bit(reader, dtype):
    optimizer, ours, twin, theirs = build_fp16(dtype, reader, "decoupled", betas=(0.0, 0.99))
    rows = helpers.gradients(ours, STEPS)
    run(optimizer, ours, rows)
    run(twin, theirs, rows)
    assert same_values(ours, theirs)
    assert same_values(masters(optimizer, ours), masters(twin, theirs))


@halves
@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_fp16_steps_the_memory_that_others_share_where_labmls_puts_new_in_its_place(reader, dtype):
    optimizer, ours, twin, theirs = build_fp16(dtype, reader)
    shared, abandoned = [p.detach() for p in ours], [p.detach() for p in theirs]
    row = helpers.gradients(ours, 1)[0]
    helpers.step(optimizer, ours, row)
    helpers.step(twin, theirs, row)
    assert same_values(ours, shared)
    assert not same_values(theirs, abandoned)


@pytest.mark.parametrize("reader", [*READERS, "default"])
def test_fp16_copies_a_float32_parameter_where_labmls_keeps_the_parameter_itself(reader):
    optimizer, ours, twin, theirs = build_fp16(torch.float32, reader)
    row = helpers.gradients(ours, 1)[0]
    helpers.step(optimizer, ours, row)
    helpers.step(twin, theirs, row)
    assert all(master is p for master, p in zip(masters(twin, theirs), theirs, strict=True))
    for master, p in zip(masters(optimizer, ours), ours, strict=True):
        assert master.data_ptr() != p.data_ptr()
        assert not master.requires_grad
        assert same(master, p.detach())


def test_fp16_scaler_saves_small_gradients_where_labmls_needs_a_torch_of_yesterday():
    (p,) = ps = helpers.params([(3,)], torch.float16)
    scaler = GradScalerFP16("cpu", init_scale=2.0**20)
    scaler.scale(p.float().sum() * 2.0**-30).backward()
    scaler.unscale_(AdamFP16(ps))
    assert same(p.grad, torch.full((3,), 2.0**-30))
    labmls_scaler = sys.modules["labml_nn.optimizers.adam_fp16"].GradScalerFP16
    with pytest.raises(AttributeError, match="_MultiDeviceReplicator"):
        labmls_scaler._unscale_grads_(None, THEIRS["adam_fp16"](ps), torch.ones(1), torch.zeros(1), True)


# ## labml's bugs: formulas


def test_both_forms_agree_where_eps_hat_is_eps_times_the_root_of_the_correction():
    r"""labml's page says $\hat\epsilon = (1 - \beta_2^t)\, \epsilon$, without the root."""
    eps, beta2 = 0.1, 0.99
    corrections = {"plain": lambda c: 1, "root": math.sqrt, "labml": lambda c: c}
    ended = {}
    for name, correct in corrections.items():
        ended[name] = helpers.params()
        optimizer = Adam(ended[name], lr=0.02, betas=(0.9, beta2), optimized_update=name != "plain")
        for t, row in enumerate(helpers.gradients(ended[name], STEPS), 1):
            optimizer.param_groups[0]["eps"] = eps * correct(1 - beta2**t)
            helpers.step(optimizer, ended[name], row)
    assert_as_labml(ended["root"], ended["plain"])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(ended["labml"], ended["plain"], strict=True))


@pytest.mark.parametrize("reordered", [False, True])
def test_effective_step_is_divided_by_the_root_of_the_second_moment(reordered):
    r"""labml's page divides by $\hat v_t$ itself: gradients a thousand times larger would make smaller steps."""
    lr, (beta1, beta2), t = 0.02, (0.9, 0.99), 10
    effective = []
    for scale in (1, 1024):
        (p,) = ps = helpers.params([(5,)])
        optimizer = Adam(ps, lr, (beta1, beta2), eps=0.0, optimized_update=reordered)
        rows = [[scale * g] for (g,) in helpers.gradients(ps, t)]
        run(optimizer, ps, rows[:-1])
        before = p.detach().clone()
        run(optimizer, ps, rows[-1:])
        effective.append(before - p.detach())
        m_hat = optimizer.state[p]["exp_avg"] / (1 - beta1**t)
        v_hat = optimizer.state[p]["exp_avg_sq"] / (1 - beta2**t)
        torch.testing.assert_close(effective[-1], lr * m_hat / v_hat.sqrt(), rtol=1e-10, atol=1e-15)
    assert same(*effective)
    assert not torch.allclose(effective[-1], lr * m_hat / v_hat, rtol=0.5)


def test_variance_of_the_adaptive_factor_is_that_of_radams_page():
    r"""
    Drawn: $\psi$ is one over the root of the mean square of $\rho$ normal numbers.

    For the variance of $\psi^2$ labml's page has $2 \rho / \big(\sigma^4 (\rho - 2)^2 (\rho - 2)\big)$, from which that
    of $\psi$ does not follow. It is $2 \rho^2 / \big(\sigma^4 (\rho - 2)^2 (\rho - 4)\big)$.
    """
    rho, sigma = 50, 2.0
    squares = np.random.default_rng(0).normal(0, sigma, (200_000, rho)) ** 2
    psi = squares.mean(axis=1) ** -0.5
    of_psi = rho / (2 * (rho - 2) * (rho - 4) * sigma**2)
    of_square = 2 * rho**2 / (sigma**4 * (rho - 2) ** 2 * (rho - 4))
    assert np.var(psi) == pytest.approx(of_psi, rel=0.05)
    assert np.var(psi**2) == pytest.approx(of_square, rel=0.05)
    assert of_square / (4 * np.mean(psi**2)) == pytest.approx(of_psi, rel=0.01)
    assert np.var(psi**2) > 10 * 2 * rho / (sigma**4 * (rho - 2) ** 3)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("t", [10, 100, 5000])
def test_rectification_brings_the_variance_to_its_smallest(t, beta2):
    def variance(rho):
        return rho / (2 * (rho - 2) * (rho - 4))

    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    r = RAdam.calc_rectification_term(beta2, t)
    assert r**2 * variance(rho_t) == pytest.approx(variance(rho_inf), rel=1e-12)
    assert r == pytest.approx(THEIRS["radam"].calc_rectification_term(beta2, t), rel=1e-14)
