"""
`python -m docs check`: the formulas above the lines of every rule are what the lines do, and whatever is wrong with
either is found.
"""

import re
import sys

import pytest

pytest.importorskip("lark", reason="the parser of formulas is in the extra `docs`")

from docs.__main__ import main
from docs.formulas import cases, check
from docs.formulas.comments import comments, page_of, read_equation
from docs.formulas.formula import Name, Unreadable
from docs.formulas.notation import read
from docs.formulas.readings import PAGES

CHECKED = [path.stem for path in sorted(PAGES.glob("*.py")) if any(comments(page_of(path)))]


@pytest.mark.parametrize("page", CHECKED)
def test_every_formula_is_what_its_line_does(page):
    report = check.check(PAGES / f"{page}.py")
    assert report.failures == []
    assert report.checked == report.total - len(report.exceptions)


def test_every_page_with_a_rule_of_its_own_is_among_them():
    rules = {
        path.stem for path in PAGES.glob("*.py") if re.search(r"def (step_param|get_lr|update_param)", path.read_text())
    }
    assert rules - {"equations"} <= {*CHECKED}


def test_exceptions_are_few_and_have_reasons():
    assert set(cases.EXCEPTIONS) == {
        ("adam_fp16", r"\Theta_t \leftarrow \text{Adam}"),
        ("muon", r"o_t \leftarrow U V^\top"),
    }
    assert all(len(reason.split()) > 5 for reason in cases.EXCEPTIONS.values())


def copy_of(page, tmp_path, old, new):
    """A page with one thing changed, and the line of that. The head of a page may have the same formula: it stays."""
    text = (PAGES / f"{page}.py").read_text()
    assert old in text, f"{page} has no {old!r} any more"
    before, _, behind = text.rpartition(old)
    path = tmp_path / f"{page}.py"
    path.write_text(before + new + behind)
    return path, before.count("\n") + 1


MISTAKES = {
    "sign": ("adam", r"$$m_t \leftarrow m_{t-1} + (1", r"$$m_t \leftarrow m_{t-1} - (1"),
    "value of this step for that of the last": ("adam", r"(g_t - m_{t-1})$$", r"(g_t - m_t)$$"),
    "other beta": ("adam", r"$$v_t \leftarrow \beta_2 v_{t-1}", r"$$v_t \leftarrow \beta_1 v_{t-1}"),
    "no square": ("adam", r"(1 - \beta_2)\, g_t^2$$", r"(1 - \beta_2)\, g_t$$"),
    "no root": ("adam", r"$$\sqrt{v_t} + \hat\epsilon$$", r"$$v_t + \hat\epsilon$$"),
    "no bias correction": ("adam", r"$$\frac{\alpha}{1 - \beta_1^t}$$", r"$$\alpha$$"),
    "least for largest": ("adam", r"\leftarrow \max(v^{max}_{t-1}, v_t)$$", r"\leftarrow \min(v^{max}_{t-1}, v_t)$$"),
    "epsilon inside the root": (
        "adam",
        r"$$\frac{\sqrt{v_t}}{\sqrt{1 - \beta_2^t}} + \epsilon$$",
        r"$$\sqrt{\frac{v_t}{1 - \beta_2^t} + \epsilon}$$",
    ),
    "correction at the step before": ("adam", r"$1 - \beta_1^t$ and", r"$1 - \beta_1^{t-1}$ and"),
    "formula of another state": ("adam", r"$$v_t \leftarrow \beta_2", r"$$m_t \leftarrow \beta_2"),
    "new value called the old one": (
        "adam",
        r"$$\theta_t \leftarrow \theta_{t-1} - \text{step",
        r"$$\theta_{t-1} \leftarrow \theta_{t-1} - \text{step",
    ),
    "wrong in the eighth digit": ("adam", r"- \text{step size}", r"- 1.00000003 \cdot \text{step size}"),
    "no hat": ("ademamix", r"$$\hat m_t + a_t n_t$$", r"$$m_t + a_t n_t$$"),
    "rate inside the momentum": (
        "rmsprop",
        r"$$b_t \leftarrow \mu\, b_{t-1} + \frac{g_t}",
        r"$$b_t \leftarrow \mu\, b_{t-1} + \alpha \frac{g_t}",
    ),
    "no clamp at zero": ("rmsprop", r"$$\sqrt{\max(v_t - \bar g_t^2, 0)}$$", r"$$\sqrt{v_t - \bar g_t^2}$$"),
    "average of the last step": (
        "adadelta",
        r"\frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t",
        r"\frac{\sqrt{u_t + \epsilon}}{\sqrt{v_t",
    ),
    "no sign": ("lion", r"- \alpha\, \text{sign}(c_t)$$", r"- \alpha\, c_t$$"),
    "bounds the wrong way round": ("rprop", r"\eta_{min}), \eta_{max})$$", r"\eta_{max}), \eta_{min})$$"),
    "condition turned": (
        "rprop",
        r"\eta^- \quad \text{where } g_{t-1}\, g_t < 0$$",
        r"\eta^- \quad \text{where } g_{t-1}\, g_t > 0$$",
    ),
    "product one factor short": (
        "nadam",
        r"\frac{\mu_{t+1}}{1 - \prod_{i=1}^{t+1} \mu_i}",
        r"\frac{\mu_{t+1}}{1 - \prod_{i=1}^{t} \mu_i}",
    ),
    "step size of the next step": (
        "asgd",
        r"\leftarrow \theta_t - \eta_{t-1}\, g_t$$",
        r"\leftarrow \theta_t - \eta_t\, g_t$$",
    ),
    "matrices in another order": ("muon", r"$$A = X X^\top$$", r"$$A = X^\top X$$"),
    "without the switch": (
        "sgd",
        r"& \text{nesterov} \\ v_t & \text{otherwise} \end{cases}$$",
        r"& \text{moving average} \\ v_t & \text{otherwise} \end{cases}$$",
    ),
    "rows of a sparse gradient": (
        "adagrad",
        r"""# $$\sqrt{s_t} + \epsilon$$""",
        r"""# $$\sqrt{s_{t-1}} + \epsilon$$""",
    ),
    "gradient of the estimate": ("sophia", r"(1 - \beta_2)\, B\, \hat g^2$$", r"(1 - \beta_2)\, \hat g^2$$"),
    "absolute decay": (
        "weight_decay",
        r"$$\theta_{t-1} \leftarrow (1 - \lambda)",
        r"$$\theta_{t-1} \leftarrow (1 - \alpha \lambda)",
    ),
    "a schedule": ("noam", r"\begin{cases} \frac{1}{\sqrt t} & t \ge w", r"\begin{cases} \frac{1}{\sqrt t} & t \le w"),
    "initial value": ("adam", r"# $m_0 = 0$", r"# $m_0 = 1$"),
    "another correction in the code": ("radam", "2 * step * beta2_t", "2 * (step - 1) * beta2_t"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_formula_is_found(mistake, tmp_path):
    path, line = copy_of(MISTAKES[mistake][0], tmp_path, *MISTAKES[mistake][1:])
    failures = check.check(path).failures
    places = [int(failure.removeprefix(f"{path}:").partition(":")[0]) for failure in failures]
    if mistake == "another correction in the code":
        # That is the line below its formula.
        line -= 1
    assert line in places, failures


CHANGES = {
    "other beta": ("adam", "m.lerp_(grad, 1 - beta1)", "m.lerp_(grad, 1 - beta2)"),
    "other weight": ("adam", "value=1 - beta2)", "value=1)"),
    "upwards": ("adam", "value=-step_size)", "value=step_size)"),
    "no epsilon": ("adam", 'denominator = v.sqrt().add_(group["eps"])', "denominator = v.sqrt()"),
    "moment for its square": ("adam", "v_max.copy_(torch.maximum(v_max, v))", "v_max.copy_(torch.maximum(v_max, m))"),
    "order of lines": ("lion", "grad, 1 - beta2)", "grad, 1 - beta1)"),
    "in place": ("adadelta", "u.add(eps).sqrt_()", "u.add_(eps).sqrt()"),
    "schedule": ("adam_warmup", 'lr * state["step"] / group["warmup"]', 'lr * (state["step"] - 1) / group["warmup"]'),
    "iteration": ("muon", "gram, gram, gram, beta=b, alpha=c", "gram, gram, gram, beta=c, alpha=b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_is_found(change, tmp_path):
    path, line = copy_of(CHANGES[change][0], tmp_path, *CHANGES[change][1:])
    failures = check.check(path).failures
    assert all("the formula is not what the line does" in failure for failure in failures)
    # What is changed in place where it should not be is noticed at the next formula.
    assert any(failure.startswith((f"{path}:{line - 1}:", f"{path}:{line + 1}:")) for failure in failures)


def test_a_failure_shows_both_sides(tmp_path):
    path, line = copy_of("adam", tmp_path, r"(g_t - m_{t-1})$$", r"(g_t + m_{t-1})$$")
    (failure,) = check.check(path).failures
    assert failure.startswith(f"{path}:{line}: the formula is not what the line does, in Adam(lr=0.3, ")
    for part in (
        r"formula        m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t + m_{t-1})",
        "code           m.lerp_(grad, 1 - beta1)",
        r"read as        m_{t-1} + (1 - \beta_1)*(g_t + m_{t-1})",
        "which gives    ",
        "the line made  ",
        r"\beta_1 = 0.7",
    ):
        assert part in failure


def test_the_same_said_otherwise_is_no_mistake(tmp_path):
    path, _ = copy_of(
        "adam",
        tmp_path,
        r"$$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$",
        r"$$m_t = \big( 1 - \beta_1 \big)\; g_t + \beta_1 \cdot m_{t-1}$$",
    )
    assert check.check(path).failures == []


# ## Coverage does not lie


def test_a_formula_that_no_case_reaches_is_an_error(monkeypatch):
    monkeypatch.setitem(cases.CASES, "adam", cases.CASES["adam"][:1])
    report = check.check(PAGES / "adam.py")
    assert len(report.failures) == 3
    assert all("no case in docs/formulas/cases.py comes to this line" in failure for failure in report.failures)
    assert report.checked == report.total - 3


def test_a_page_without_cases_is_an_error(monkeypatch):
    monkeypatch.delitem(cases.CASES, "lion")
    report = check.check(PAGES / "lion.py")
    assert (report.checked, report.total, len(report.failures)) == (0, 4, 4)


UNREADABLE = {
    r"$$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t \odot m_{t-1})$$": r"'\\odot m_{t-1})' is not understood",
    r"$$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1}$$": "a bracket is not closed",
    r"$$m_t \leftarrow m_{t-1} + (1 - \beta_1) +$$": "sympy can't read 'a+(1-b)+'",
    r"$$m_t \leftarrow q_t$$": "q_t is not known here",
    r"$m_t$ and $v_t$ and $g_t$": "formulas: 3, values that the lines below make: 1",
    r"$$m_t \leftarrow g_t, \quad q_t = 1$$": "q_t is defined and not used",
    r"$$m_t \leftarrow \begin{cases} g_t & \text{amsgrad} \end{cases}$$": "the last of cases must be",
}


@pytest.mark.parametrize("formula", UNREADABLE)
def test_a_formula_that_cannot_be_read_is_an_error(formula, tmp_path):
    old = r"$$m_t \leftarrow m_{t-1} + (1 - \beta_1)(g_t - m_{t-1})$$"
    path, line = copy_of("adam", tmp_path, old, formula)
    failure = "\n".join(check.check(path).failures)
    assert f"{path}:{line}: the formula " in failure
    assert UNREADABLE[formula] in failure
    assert ("CONTRIBUTING.md" in failure) == ("can't be read" in failure)


def test_a_formula_must_stand_directly_above_an_operation(tmp_path):
    path, line = copy_of("adam", tmp_path, "        m.lerp_(grad", "\n        m.lerp_(grad")
    report = check.check(path)
    assert f"{path}:{line - 1}: the formula can't be read: it stands above no operation" in report.failures[0]
    assert report.checked < report.total


def test_an_exception_that_is_none_any_more_is_an_error(monkeypatch):
    monkeypatch.setitem(cases.EXCEPTIONS, ("adam", r"m_t \leftarrow"), "because")
    monkeypatch.setitem(cases.EXCEPTIONS, ("adam", r"q_t \leftarrow"), "because")
    report = check.check(PAGES / "adam.py")
    assert report.exceptions[0].startswith(r"adam.py:144: m_t \leftarrow")
    assert [re.sub(".*: ", "", failure) for failure in report.failures] == [
        r"no formula begins as the exception 'q_t \\leftarrow' in docs/formulas/cases.py"
    ]


def test_a_rule_that_raises_is_an_error(tmp_path):
    path, _ = copy_of("lion", tmp_path, "m.lerp_(grad, 1 - beta2)", "m.lerp_(grad, 1 - beta3)")
    assert "can't be read at t = 1: NameError: name 'beta3' is not defined" in check.check(path).failures[0]


# ## The command


def test_the_command_prints_pages_and_coverage(monkeypatch, tmp_path, capsys):
    for page in ("adam", "adam_fp16", "lion"):
        copy_of(page, tmp_path, "import", "import")
    monkeypatch.setattr(check, "PAGES", tmp_path)
    assert main(["check"]) == 0
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()[:3]] == [
        ["adam.py", "11/11"],
        ["adam_fp16.py", "3/4"],
        ["lion.py", "4/4"],
    ]
    assert "18 of 19 formulas above operations checked (94.7%), 1 excepted" in printed.out
    assert r"\Theta_t \leftarrow \text{Adam}(\Theta_{t-1}, g_t): it stands for" in printed.out
    assert printed.err == ""


def test_the_command_fails_with_a_mistake(monkeypatch, tmp_path, capsys):
    copy_of("lion", tmp_path, r"\text{sign}(c_t),", "c_t,")
    monkeypatch.setattr(check, "PAGES", tmp_path)
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    assert "lion.py  3/4" in printed.out
    assert "the formula is not what the line does" in printed.err


def test_the_tracer_of_others_is_put_back():
    def theirs(*_):
        return None

    before = sys.gettrace()
    sys.settrace(theirs)
    try:
        check.check(PAGES / "lion.py")
        assert sys.gettrace() is theirs
    finally:
        sys.settrace(before)


# ## The notation


@pytest.mark.parametrize(
    ("latex", "meaning"),
    [
        (r"\beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2", r"\beta_2*v_{t-1} + g_t**2*(1 - \beta_2)"),
        (r"\frac{\sqrt{v_t}}{\sqrt{1 - \beta_2^t}} + \epsilon", r"\epsilon + sqrt(v_t)/sqrt(1 - \beta_2**t)"),
        (r"a b / c - d", "a*b/c - d"),
        (r"-\tfrac{1}{2} a^2 b^3", "-a**2*b**3/2"),
        (r"\hat{m}_t \hat v^{max}_t", r"\hat m_t*\hat v^max_t"),
        (r"\beta_{3,t} \rho_\infty \eta^+ d_{model}", r"\beta_{3,t}*\eta^+*\rho_\infty*d_{model}"),
        (r"\max(|g_t|, \min(1, t/T))", r"max(abs(g_t), min(1, t/T))"),
        (r"\ln \beta_1 \ln(\beta_2)", r"ln(\beta_1)*ln(\beta_2)"),
        (r"\text{step size} \cdot \sqrt t", r"\text{step size}*sqrt(t)"),
        (r"X X^\top + A X", r"A*X + X*X^\top"),
    ],
)
def test_notation_is_read(latex, meaning):
    assert str(read(latex)) == meaning


def test_an_equation_has_a_result_sides_and_where():
    equation = read_equation(r"\text{sign}(c_t), \quad c_t \leftarrow m_{t-1} + g_t")
    assert equation.result is None
    assert [*map(str, equation.sides)] == ["sign(c_t)"]
    assert {name: str(formula) for name, formula in equation.where.items()} == {Name("c", "t"): "g_t + m_{t-1}"}
    equation = read_equation(r"\alpha\, \hat m_t = \alpha m_t")
    assert equation.result is None
    assert len(equation.sides) == 2
    with pytest.raises(Unreadable, match="is defined and not used"):
        read_equation(r"g_t, \quad c_t = 1")
