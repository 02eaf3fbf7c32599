"""
---
title: One thread
summary: Runs that don't depend on the number of cores.
---

# One thread
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """## In here there is one thread: so little is quicker not shared out, and always adds up in the same order"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
