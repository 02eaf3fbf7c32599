"""
---
title: Functions of numbers
summary: What a rule does to a number that has no operator.
---

# Functions of numbers

A rule's numbers are floats at a step, and symbols where its [equations](symbolic.html) are read. Operators serve for
both: `x ** 0.5` is a root. What has no operator is here. Each function takes a float, and asks any other kind of number
for its own.
"""

from __future__ import annotations

import math
from ctypes import c_float
from typing import Any

from torch.compiler import is_compiling


def cos(number: Any) -> Any:
    """## The cosine"""
    return math.cos(number) if isinstance(number, (int, float)) else number.cos()


def exp(number: Any) -> Any:
    """## The exponential function"""
    if isinstance(number, (int, float)):
        # Of numbers that change torch.compile has powers, and no exponential function.
        return math.e**number if is_compiling() else math.exp(number)
    return number.exp()


def log(number: Any) -> Any:
    """## The natural logarithm"""
    return math.log(number) if isinstance(number, (int, float)) else number.log()


def float32_product(one: Any, two: Any) -> Any:
    """## A product as float32 has it; that of symbols, of tensors and under `torch.compile` is not rounded"""
    if isinstance(one, (int, float)) and isinstance(two, (int, float)) and not is_compiling():
        return c_float(one * c_float(two).value).value
    return one * two
