"""
---
title: A launch on the CPU
summary: A C function, called by its address, with the threads that torch has.
---

# A launch on the CPU
"""

from __future__ import annotations

import os

import torch

from optimizers.engines import compiler
from optimizers.engines.c_kernel import c_source
from optimizers.engines.cohort import Cohort
from optimizers.engines.launch import Launch

#: Below this number of elements waking a second thread takes longer than it saves.
THREADING_ELEMENTS = 16384

# The threads of a parent do not exist in its forked child, and an OpenMP runtime waits for them forever.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a kernel may take."""
    return 1 if _forked else torch.get_num_threads()


class CLaunch(Launch):
    """## A launch of a C function"""

    takes_absent = True
    printed = staticmethod(c_source)

    def _load(self) -> None:
        self.kernel = compiler.load(self.source)

    def _arrange(self, cohorts: list[Cohort]) -> None:
        super()._arrange(cohorts)
        runtime = compiler.openmp()
        self.parallel = runtime is not None and self._offsets[-1] >= THREADING_ELEMENTS
        self.arguments.threads = 1
        if runtime is not None:
            self.arguments.parallel, self.arguments.thread, self.arguments.team = runtime

    def run(self, state_is_known: bool) -> None:
        """### Step, with as many threads as torch may have now"""
        if self.parallel:
            self.arguments.threads = threads()
        # What this reads was just looked at; when the kernel is through it is out of the caches.
        self.look.mark()
        if state_is_known:
            self.look.mark_states()
        self.kernel.step(self.argument)
