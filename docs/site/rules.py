"""What the engines made of each rule: the equations that are executed, and the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import optimizers
from optimizers import GenericAdaptiveOptimizer, equations
from optimizers.engines.c_launch import CLaunch
from optimizers.engines.cohort import gather
from optimizers.engines.program import Program, Unrecordable
from optimizers.engines.stepper import read_once, tape_of
from optimizers.engines.triton_launch import TritonLaunch

#: Options without which a rule would not show what its page is about.
SHOWN: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}

#: Steps at which a rule is read for its kernels: it may do something else in the beginning.
STEPS = (1, 10_000)

#: What kernels are printed in: the language, its name for who colours it, and who prints it.
BACK_ENDS = (("C", "c", CLaunch), ("Triton", "python", TritonLaunch))


@dataclass
class Exhibit:
    """
    What stands beside the introduction of a rule. `kernels` are titles, languages and sources; `reason` is why there is
    none.
    """

    options: str = ""
    equations: str = ""
    kernels: list[tuple[str, str, str]] = field(default_factory=list)
    reason: str = ""


def shipped() -> Iterator[type[GenericAdaptiveOptimizer]]:
    """The rules of the library, each on a page of its own."""
    for name in optimizers.__all__:
        rule = getattr(optimizers, name)
        is_rule = isinstance(rule, type) and issubclass(rule, GenericAdaptiveOptimizer)
        if is_rule and rule is not GenericAdaptiveOptimizer:
            yield rule


def page_of(rule: type) -> str:
    """The name of a rule's page, which is that of its module."""
    return rule.__module__.rpartition(".")[2]


def exhibits() -> dict[str, Exhibit]:
    """By the name of the page."""
    return {page_of(rule): exhibit(rule) for rule in shipped()}


def exhibit(rule: type[GenericAdaptiveOptimizer]) -> Exhibit:
    """Read one rule."""
    options = SHOWN.get(rule.__name__, {})
    shown = Exhibit(", ".join(f"{name}={value!r}" for name, value in options.items()))
    try:
        # KaTeX has cases with fractions of full size; what notebooks show formulas with has not.
        shown.equations = equations(rule, **options).latex().replace("{cases}", "{dcases}")
        shown.kernels = kernels(rule, options)
    except Unrecordable as error:
        shown.reason = str(error)
    return shown


def kernels(rule: Any, options: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The C and the Triton for a parameter of float32, for each program that the rule has."""
    optimizer = rule([torch.zeros(2, 3, requires_grad=True)], **options)
    (cohort,) = gather(optimizer, dry=True)
    tape = tape_of(cohort)
    programs: dict[int, tuple[int, Program]] = {}
    for step in STEPS:
        if "step" in cohort.scalars:
            cohort.scalars["step"] = step - 1
        read_once(optimizer, cohort, tape)
        program = tape.program(tape.node)
        programs.setdefault(id(program), (step, program))
    return [
        (name if len(programs) == 1 else f"{name}, as at step {step:,}", language, source)
        for name, language, launch in BACK_ENDS
        for step, program in programs.values()
        for source in [launch.source_of(rule.__name__, program, cohort)]
    ]
