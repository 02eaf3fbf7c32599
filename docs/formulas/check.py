"""
Every page against itself.

Each rule of a page is read with the options of `cases.CASES`, at several steps, from a random state. Every formula must
be reached at least once, and hold whenever it is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from docs.formulas.cases import CASES, EXCEPTIONS, STEPS
from docs.formulas.comments import Comment, Equation, comments, page_of
from docs.formulas.formula import Unreadable
from docs.formulas.letters import letters_of
from docs.formulas.readings import PAGES, module_of, optimizer_of, read_rule
from docs.formulas.watch import Watch

NOTATION = 'CONTRIBUTING.md, "Formulas above code", has the notation'


@dataclass
class Report:
    """What was found on a page: `checked` of `total` formulas, `exceptions` with their reasons, and `failures`."""

    name: str
    total: int = 0
    checked: int = 0
    exceptions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Check all pages, print what was found; the result is the exit code."""
    reports = [report for path in sorted(PAGES.glob("*.py")) if (report := check(path)).total]
    width = max(len(report.name) for report in reports)
    for report in reports:
        print(f"{report.name:{width}}  {report.checked}/{report.total}")
    checked, total = (sum(getattr(report, what) for report in reports) for what in ("checked", "total"))
    exceptions = [line for report in reports for line in report.exceptions]
    print(f"{checked} of {total} formulas above operations checked ({checked / total:.1%}), {len(exceptions)} excepted")
    for line in exceptions:
        print(f"  {line}", flush=True)
    failures = [failure for report in reports for failure in report.failures]
    print(*failures, sep="\n", file=sys.stderr, end="\n" if failures else "")
    return 1 if failures else 0


def check(path: Path) -> Report:
    """Check one page: a module of the package, or a changed copy of one with the same name."""
    found, report = list(comments(page_of(path))), Report(path.name)
    report.total = len(found)
    equations: dict[str, list[Equation]] = {}
    for comment in found:
        if reason := _exception(path.stem, comment):
            report.exceptions.append(f"{comment.place}: {comment.latex[0]}: {reason}")
            continue
        try:
            equations[comment.place] = comment.equations()
        except Unreadable as error:
            report.failures.append(_failure(comment, f"the formula can't be read: {error}\n    {NOTATION}"))
    for stem, begins in EXCEPTIONS:
        if stem == path.stem and not any(comment.latex[0].startswith(begins) for comment in found):
            report.failures.append(f"{path}:1: no formula begins as the exception {begins!r} in docs/formulas/cases.py")
    checked, wrong = _watched(path, found, equations, report) if equations else (set(), {})
    for comment in found:
        if comment.place in wrong:
            report.failures.append(_failure(comment, wrong[comment.place]))
        elif comment.place in equations and comment.place not in checked:
            report.failures.append(_failure(comment, "no case in docs/formulas/cases.py comes to this line"))
    report.checked = len(checked - set(wrong))
    return report


def _watched(
    path: Path, found: list[Comment], equations: dict[str, list[Equation]], report: Report
) -> tuple[set[str], dict[str, str]]:
    """Read the rules of a page. The places that were compared, and what is wrong, by place."""
    module = module_of(path)
    checked: set[str] = set()
    wrong: dict[str, str] = {}
    readable = [comment for comment in found if comment.place in equations]
    for case in CASES.get(path.stem, []):
        letters = letters_of(module, optimizer_of(module, case))
        watch = Watch(str(module.__file__), readable, equations, letters, case.tolerance)
        for t in STEPS:
            try:
                with np.errstate(all="ignore"):
                    read_rule(watch, optimizer_of(module, case), case, t)
            except Exception as error:  # A rule may raise anything.
                report.failures.append(f"{path}:1: {case} can't be read at t = {t}: {type(error).__name__}: {error}")
            for place, what in watch.failures.items():
                wrong.setdefault(place, f"the formula is not what the line does, in {case} at t = {t}\n{what}")
        checked |= watch.checked
    return checked, wrong


def _exception(stem: str, comment: Comment) -> str:
    return next(
        (why for (s, begins), why in EXCEPTIONS.items() if s == stem and comment.latex[0].startswith(begins)), ""
    )


def _failure(comment: Comment, what: str) -> str:
    first, *rest = what.split("\n")
    formulas = " and ".join(" ".join(latex.split()) for latex in comment.latex)
    code = "\n                   ".join(comment.code.split("\n"))
    rows = [f"{comment.page}:{comment.line}: {first}", f"    formula        {formulas}", f"    code           {code}"]
    return "\n".join([*rows, *rest])
