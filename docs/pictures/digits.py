"""
---
title: Digits, soon
summary: Some of scikit-learn's digits, read from its file.
---

# Digits, soon

Importing scikit-learn takes longer than all pictures together, and is needed for nothing but to find a file. It is
where `load_digits` finds it, and a test compares the two.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def first_digits(rows: int) -> tuple[Tensor, Tensor]:
    """## The first images, float32 in $[0, 1]$ of shape `[rows, 64]`, and their labels, int64 of shape `[rows]`"""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The pictures need scikit-learn's digits: pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", max_rows=rows))
    return (table[:, :-1] / 16).float(), table[:, -1].long()
