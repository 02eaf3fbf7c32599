"""What is executed is what the paper says: recovered formulas against those of `reference`, with fifty digits."""

import math
import re
import subprocess
import sys
from inspect import signature

import mpmath
import numpy as np
import pytest
import sympy
import torch
from mpmath import mp, mpf
from sympy.printing.c import C99CodePrinter
from sympy.printing.jscode import JavascriptCodePrinter

from optimizers import SGD, Adam, AdamW, AMSGrad, Lion, Muon, RAdam, equations
from optimizers.base import GenericAdaptiveOptimizer
from optimizers.engines.program import Unrecordable
from tests.rules import BY_NAME, RULES

READABLE = [rule for rule in RULES if not rule.matrices]
STEPS, DIGITS, TOLERANCE = 40, 50, mpf(10) ** -35

#: The schedules of the papers once more: those of the table of rules are in float64.
SCHEDULES = {
    "adam-warmup": lambda t: mpf(0.02) * min(mpf(1), mpf(t) / 10),
    "adam-warmup-cosine": lambda t: (
        mpf(0.02) * (mpf(t) / 5 if t < 5 else max(mpf(0.1), (1 + mpmath.cos(mp.pi * min(mpf(1), mpf(t - 5) / 30))) / 2))
    ),
    "noam": lambda t: 2 / mpmath.sqrt(64) * min(1 / mpmath.sqrt(t), t / mpmath.sqrt(20) ** 3),
}


@pytest.fixture(autouse=True)
def fifty_digits(monkeypatch):
    # What numpy asks of the numbers in its arrays.
    for name in ("exp", "log", "cos"):
        monkeypatch.setattr(mpf, name, lambda number, name=name: getattr(mpmath, name)(number), raising=False)
    with mp.workdps(DIGITS):
        yield


def precise(value):
    """Numbers with fifty digits, also inside of tuples. Switches and names stay."""
    if isinstance(value, tuple):
        return tuple(map(precise, value))
    return mpf(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def start(seed=0, size=3):
    """A parameter and its gradients. Signs turn, one gradient is zero."""
    random = np.random.default_rng(seed)
    param = np.array([mpf(x) for x in random.normal(size=size)])
    grads = [np.array([mpf(x) for x in random.normal(size=size)]) for _ in range(STEPS)]
    grads[3][0] = mpf(0)
    return param, grads


def binary(expr):
    """A formula with each decimal as the nearest float64, as the rule has it in its code."""
    decimals = {q: sympy.Rational(float(q)) for q in expr.atoms(sympy.Rational) if not q.is_Integer}
    return expr.xreplace(decimals)


def iterate(found, param, grads):
    """What recovered formulas make of a parameter and its state: the values after each step, by their names."""
    names = list(found.symbols)
    values = {symbol.name: mpf(float(number)) for symbol, number in found.values.items()}
    functions = {
        name: sympy.lambdify([found.symbols[n] for n in names], binary(expr), "mpmath")
        for name, expr in found.updates.items()
    }
    path = []
    elements = [{"param": p, **_initial(found, values, p)} for p in param]
    for t, grad in enumerate(grads, 1):
        for i, element in enumerate(elements):
            at = {**values, **element, "grad": grad[i], "t": mpf(t)}
            elements[i] = {**element, **{name: f(*(at[n] for n in names)) for name, f in functions.items()}}
        path.append({name: [element[name] for element in elements] for name in elements[0]})
    return path


def _initial(found, values, param):
    known = {found.symbols[name]: value for name, value in [*values.items(), ("param", param)]}
    return {name: mpmath.mpmathify(expr.subs(known)) for name, expr in found.initial.items()}


def paper(rule, param, grads):
    """The path of a parameter by the paper's formula."""
    formula = rule.reference.func
    defaults = {name: p.default for name, p in signature(formula).parameters.items() if p.default is not p.empty}
    options = {name: precise(value) for name, value in {**defaults, **rule.reference.keywords}.items()}
    if options.get("schedule"):
        options["schedule"] = SCHEDULES[rule.name]
    return formula(param, grads, **options)


def distance(path, other, param):
    """How far two paths are from each other, as a part of how far the parameter came."""
    came = max(abs(p - q) for end in other for p, q in zip(end, param, strict=True))
    return max(abs(p - q) for one, two in zip(path, other, strict=True) for p, q in zip(one, two, strict=True)) / came


def from_paper(rule, found):
    """How far recovered formulas are from those of a rule's paper."""
    param, grads = start()
    path = [at["param"] for at in iterate(found, param, grads)]
    return distance(path, paper(rule, param, grads), param)


@pytest.mark.parametrize("rule", READABLE, ids=str)
def test_what_is_executed_is_the_formula_of_the_paper(rule):
    assert from_paper(rule, equations(rule.cls, **rule.kwargs)) < TOLERANCE


@pytest.mark.parametrize("rule", READABLE, ids=str)
def test_the_formulas_of_parameter_and_state_are_what_a_step_does(rule):
    found = equations(rule.cls, **rule.kwargs)
    numbers, grads = start()
    param = torch.tensor([float(x) for x in numbers], dtype=torch.float64).requires_grad_()
    optimizer = rule.build([param])
    for grad, expected in zip(grads, iterate(found, numbers, grads), strict=True):
        param.grad = torch.tensor([float(x) for x in grad], dtype=torch.float64)
        optimizer.step()
        for name, values in expected.items():
            got = (param if name == "param" else optimizer.state[param][name]).detach().double()
            wanted = torch.tensor([float(x) for x in values], dtype=torch.float64)
            # Numbers are kept in float32.
            precision = 1e-5 if rule.precision or got.dim() == 0 else 1e-11
            assert torch.allclose(got.expand(len(wanted)), wanted, rtol=precision, atol=precision * 1e-3), name


class WrongCorrection(Adam):
    """The count of the bias correction is one behind."""

    def adam_update(self, state, group, param, m, v):
        super().adam_update({**state, "step": state["step"] + 1}, group, param, m, v)


class WrongDecay(AdamW):
    """L2 in the place of decoupled decay."""

    def update_param(self, state, group, grad, param):
        super().update_param(state, {**group, "decoupled_weight_decay": False}, grad, param)


class WrongEpsilon(Adam):
    """Epsilon below the root, which is seen in the ninth digit."""

    def adam_update(self, state, group, param, m, v):
        super().adam_update(state, {**group, "eps": 0}, param, m, v.add(group["eps"] ** 2))


class WrongOrder(Adam):
    """The first moment of the step before."""

    def step_param(self, state, group, grad, param):
        old = state["exp_avg"].clone()
        _, v = self.get_mv(state, group, grad)
        self.adam_update(state, group, param, old, v)


class WrongLimit(RAdam):
    """Rectified from 4 on, as in the paper; the code of its authors waits until 5."""

    @staticmethod
    def calc_rectification_term(beta2, step):
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * step * beta2**step / (1 - beta2**step)
        if not rho > 4:
            return None
        return ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5


@pytest.mark.parametrize(
    ("mutant", "name"),
    [
        (WrongCorrection, "adam"),
        (WrongEpsilon, "adam"),
        (WrongOrder, "adam"),
        (WrongDecay, "adamw"),
        (WrongLimit, "radam"),
    ],
)
def test_a_planted_mistake_is_seen(mutant, name):
    rule = BY_NAME[name]
    assert from_paper(rule, equations(mutant, **rule.kwargs)) > 10**25 * TOLERANCE


@pytest.mark.parametrize(
    ("rule", "options"),
    [(Adam, {}), (Adam, {"weight_decay": 0.1}), (Adam, {"amsgrad": True}), (AdamW, {}), (AMSGrad, {"maximize": True})],
)
def test_the_reordered_update_is_that_of_the_paper_with_another_epsilon(rule, options):
    plain = equations(rule, **options)
    reordered = equations(rule, optimized_update=True, **options)
    eps, beta2, t = (plain.symbols[name] for name in ("eps", "beta2", "t"))
    assert plain.symbols == reordered.symbols
    hat = reordered.updates["param"].subs(eps, eps * sympy.sqrt(1 - beta2**t))
    assert sympy.simplify(plain.updates["param"] - hat) == 0
    # labml's page has another one, which is wrong.
    wrong = reordered.updates["param"].subs(eps, eps * (1 - beta2**t))
    assert sympy.simplify(plain.updates["param"] - wrong) != 0


# ## Rules of a user


class Rooted(GenericAdaptiveOptimizer):
    """Divides by the root of the mean absolute gradient; warms up; the mask keeps what points uphill."""

    letters = {"mean_abs": r"\zeta"}  # noqa: RUF012

    def __init__(self, params, lr=0.1, decay=0.75, ramp=5, **options):
        super().__init__(params, {"decay": decay, "ramp": ramp, **options}, lr)

    def init_state(self, state, group, param):
        state["step"] = 0
        state["mean_abs"] = torch.ones_like(param)
        state["steps_uphill"] = torch.zeros_like(param)

    def step_param(self, state, group, grad, param):
        mean, decay, t = state["mean_abs"], group["decay"], state["step"]
        mean.mul_(decay).add_(grad.abs(), alpha=1 - decay)
        rate = group["lr"] if t > group["ramp"] else group["lr"] * t / group["ramp"]
        state["steps_uphill"].add_((grad * param < 0).double())
        param.addcdiv_(grad, mean.sqrt(), value=-rate)


def test_a_rule_of_a_user_has_its_equations():
    found = equations(Rooted)
    theta, g, zeta, alpha, decay, ramp, t = (
        found.symbols[name] for name in ("param", "grad", "mean_abs", "lr", "decay", "ramp", "t")
    )
    mean = zeta * decay + (1 - decay) * sympy.Abs(g)
    assert found.updates["mean_abs"] == mean
    rate = alpha * sympy.Piecewise((1, t > ramp), (t / ramp, True))
    assert sympy.simplify(found.updates["param"] - (theta - rate * g / sympy.sqrt(mean))) == 0
    uphill = found.updates["steps_uphill"] - found.symbols["steps_uphill"]
    assert [uphill.subs({g: a, theta: 2}) for a in (-1, 0, 1)] == [1, 0, 0]
    assert found.initial == {"mean_abs": 1, "steps_uphill": 0}
    assert found.values == {alpha: 0.1, decay: 0.75, ramp: 5}
    assert r"\zeta_t &= \text{decay} \zeta_{t-1} + " in found.latex()
    assert r"\text{rate}_t &= \alpha \begin{cases} 1 & \text{if } t > \text{ramp} \\" in found.latex()
    assert r"\text{steps\_uphill}_{t-1}" in found.latex()


class Branching(GenericAdaptiveOptimizer):
    """Moves by a number that takes every kind of branch."""

    def __init__(self, params, lr=1.0, low=3, high=6, **options):
        super().__init__(params, {"low": low, "high": high, **options}, lr)

    def init_state(self, state, group, param):
        state["step"] = 0

    @staticmethod
    def number(t, low, high):
        if t == 2:
            return 7 * t
        if t < low:
            start = max(0.25, t - 1) * min(t, low)
        elif t <= high and (t - low) * 2 > 1:
            start = min(2.0, max(t - 4, low / 4), t / 5)
        else:
            start = 1 / t if not t >= high + 2 else abs(low - t)
        return start * 2 if t != 5 else start

    def step_param(self, state, group, grad, param):
        param.add_(grad, alpha=self.number(state["step"], group["low"], group["high"]))


def test_branches_on_numbers_become_cases():
    found = equations(Branching)
    expr = found.updates["param"]
    for t in range(1, 14):
        for low, high in ((3, 6), (1, 2), (8, 9), (5, 5)):
            at = {"param": 0, "grad": 1, "t": t, "low": low, "high": high, "lr": 1}
            value = expr.subs({found.symbols[name]: number for name, number in at.items()})
            assert math.isclose(value, Branching.number(t, low, high)), (t, low, high)


def test_minimum_and_maximum_of_numbers_are_no_cases():
    class Clipped(Branching):
        def step_param(self, state, group, grad, param):
            param.add_(grad, alpha=max(0.5, min(state["step"], group["high"] / group["low"])))

    found = equations(Clipped)
    g, theta, t, low, high = (found.symbols[name] for name in ("grad", "param", "t", "low", "high"))
    assert found.updates["param"] == theta + g * sympy.Max(sympy.Rational(1, 2), sympy.Min(t, high / low))


def test_state_that_the_first_step_makes_is_a_case_of_the_first_step():
    found = equations(SGD, momentum=0.9, dampening=0.5)
    v, g, mu, tau, t = (found.symbols[name] for name in ("momentum_buffer", "grad", "momentum", "dampening", "t"))
    assert found.updates["momentum_buffer"] == sympy.Piecewise((g, sympy.Eq(t, 1)), (mu * v + (1 - tau) * g, True))
    # Without dampening it begins like zeros.
    assert not equations(SGD, momentum=0.9).updates["momentum_buffer"].has(sympy.Piecewise)


def test_numbers_and_symbols_may_be_chosen():
    found = equations(Adam, as_symbols=["weight_decay"], as_numbers=["betas"])
    assert found.symbols["weight_decay"] in found.updates["param"].free_symbols
    assert "beta1" not in found.symbols
    assert found.updates["exp_avg"].diff(found.symbols["grad"]) == sympy.Rational(1, 10)
    assert r"v_t &= 0.999 v_{t-1} + 0.001 \tilde g_t^{2} \\" in found.latex()
    # Zero is a number like others then.
    none = equations(Adam, as_numbers=["betas"]).updates["param"]
    assert sympy.simplify(found.updates["param"].subs(found.symbols["weight_decay"], 0) - none) == 0
    with pytest.raises(ValueError, match="'momentum' is no entry of the parameter group, which has lr"):
        equations(Adam, as_numbers=["momentum"])


def test_a_function_that_makes_an_optimizer_will_do():
    assert equations(lambda params: Lion(params, lr=0.5)).updates == equations(Lion).updates


# ## What has no equations


class ByMath(Adam):
    def get_lr(self, state, group):
        return group["lr"] / math.sqrt(state["step"])


class ByValue(Adam):
    def step_param(self, state, group, grad, param):
        if grad.sum() > 0:
            super().step_param(state, group, grad, param)


class ByText(Adam):
    def get_lr(self, state, group):
        return group["lr"] * torch.tensor(state["step"])


class ByCounting(Adam):
    def get_lr(self, state, group):
        lr, t = group["lr"], state["step"]
        while t > 0:
            lr, t = lr / 2, t - 1
        return lr


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Muon, r"`size` is outside the vocabulary of the kernels \(muon.py:\d+: stands = "),
        (ByMath, r"only a float can be \(test_equations.py:\d+: return .*math.sqrt.*as_numbers"),
        (ByValue, r"`sum` is outside the vocabulary of the kernels \(test_equations.py:\d+: if grad.sum"),
        (ByText, r"\(test_equations.py:\d+: return .*torch.tensor"),
        (ByCounting, r"ByCounting was read \d+ times.* A loop can't be read"),
    ],
)
def test_what_has_no_equations_is_refused_with_its_place(rule, message):
    with pytest.raises(Unrecordable, match=message):
        equations(rule)


def test_another_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"rules of this package\. Received: torch\.optim\.adam\.Adam"):
        equations(torch.optim.Adam)
    with pytest.raises(TypeError, match=r"takes the class of an optimizer\. Received: Adam"):
        equations(Adam([torch.zeros(1)]))


# ## In print


@pytest.mark.parametrize("rule", READABLE, ids=str)
def test_latex_has_no_noise_and_every_bracket_is_closed(rule):
    latex = equations(rule.cls, **rule.kwargs).latex()
    assert not re.search(r"\d\.\d{3}|\.0\b|0\.5|_\d+_|None|nan", latex)
    assert not re.search(r"\^\{?[^{}\s]*\}?\^|_\{?[^{}\s]*\}?_\{", latex)
    assert latex.count(r"\left") == latex.count(r"\right")
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\begin{cases}") == latex.count(r"\end{cases}")
    assert all(len(line) < 400 for line in latex.splitlines())


ADAM = r"""\begin{aligned}
m_t &= m_{t-1} + \left(1 - \beta_1\right) \left(g_t - m_{t-1}\right) \\
v_t &= \beta_2 v_{t-1} + \left(1 - \beta_2\right) g_t^{2} \\
\theta_t &= \theta_{t-1} - \frac{\alpha m_t}{\left(1 - \beta_1^{t}\right) \left(\frac{\sqrt{v_t}}{\sqrt{1 - \beta_2^{t}}} + \epsilon\right)}
\end{aligned}"""  # noqa: E501


def test_adam_in_print():
    found = equations(Adam)
    assert found.latex() == ADAM
    assert found._repr_latex_() == f"$\\displaystyle {ADAM}$"
    assert str(found).splitlines()[0] == "exp_avg_t = exp_avg + (1 - beta1)*(-exp_avg + grad)"


def test_numbers_that_are_used_again_have_lines_with_the_names_of_the_rule():
    latex = equations(RAdam).latex()
    assert r"\rho_\infty &= \frac{2}{1 - \beta_2} - 1 \\" in latex
    assert r"\rho_t &= \rho_\infty - \frac{2 t \beta_2^{t}}{1 - \beta_2^{t}} \\" in latex
    assert r"& \text{if } \rho_t > 5 \\ \theta_{t-1} - \frac{\alpha m_t}{1 - \beta_1^{t}} & \text{otherwise}" in latex
    assert r"\mu_{t+1} &=" in equations(BY_NAME["nadam"].cls).latex()


@pytest.mark.parametrize("rule", READABLE, ids=str)
def test_updates_print_as_code_and_later_lines_use_earlier_ones(rule):
    found = equations(rule.cls, **rule.kwargs)
    for printer in (JavascriptCodePrinter, C99CodePrinter):
        for expr in found.updates.values():
            assert "upported" not in printer().doprint(expr, "x")
    known = set(found.symbols.values())
    for symbol, expr in found.lines:
        assert expr.free_symbols <= known
        known.add(symbol)
    assert set(found.updates) <= {"param", *found.initial}
    assert all(expr.free_symbols <= set(found.symbols.values()) for expr in found.updates.values())


def test_sympy_is_imported_by_who_needs_it():
    code = "import sys, torch; known = set(sys.modules); import optimizers; print('sympy' in set(sys.modules) - known)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
