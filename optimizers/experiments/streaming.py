r"""
---
title: The streaming limit
summary: A kernel that reads and writes what a step reads and writes, and computes next to nothing.
---

# The streaming limit

A step of Adam has to read a parameter, its gradient and two moments, and to write all but the gradient. On large
models the processor waits for memory all the time, so no step is faster than the same reads and writes with hardly
anything between them. That is the kernel of this page: for each array $a$ that a step writes, and the gradient $g$,

$$a_i \leftarrow \frac{a_i + g_i}{2}$$

It is written apart from [the kernels of the rules](../engines/c_kernel.html), so that a mistake there isn't a mistake
in the yardstick. It has the same compiler with the same flags, the same threads, and an even share of all elements for
each. All is laid out beforehand: a step is one call from Python, which looks at nothing.

On small models it is a limit of another kind: what it costs to call C at all.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from optimizers.engines import compiler
from optimizers.engines.c_launch import THREADING_ELEMENTS

_SOURCE = """\
/* The streaming limit, with {count} arrays written */
#include <stdint.h>

typedef struct {{
    int64_t tensors, threads;
    const int64_t *offsets;
    float **grads, **arrays;
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread)(void), (*team)(void);
}} launch;

static void stream(const float *restrict g, {parameters}, int64_t from, int64_t to) {{
    for (int64_t i = from; i < to; i++) {{
        {statements}
    }}
}}

static void share(const launch *l, int64_t begin, int64_t end) {{
    for (int64_t i = 0; i < l->tensors && l->offsets[i] < end; i++) {{
        int64_t start = l->offsets[i], stop = l->offsets[i + 1];
        if (stop <= begin) continue;
        stream(l->grads[i], {arguments}, begin > start ? begin - start : 0, (end < stop ? end : stop) - start);
    }}
}}

static void work(void *argument) {{
    const launch *l = argument;
    int64_t all = l->offsets[l->tensors], team = l->team(), part = ((all + team - 1) / team + 63) / 64 * 64;
    int64_t begin = l->thread() * part;
    share(l, begin, begin + part < all ? begin + part : all);
}}

int check(const launch *l) {{ return l->tensors < 1; }}

void step(const launch *l) {{
    if (l->threads > 1) l->parallel(work, (void *)l, (unsigned)l->threads, 0);
    else share(l, 0, l->offsets[l->tensors]);
}}
"""


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tensors", "threads")),
        *((name, ctypes.c_void_p) for name in ("offsets", "grads", "arrays", "parallel", "thread", "team")),
    )


def source(count: int) -> str:
    """## The C source for `count` arrays written"""
    arrays = range(count)
    return _SOURCE.format(
        count=count,
        parameters=", ".join(f"float *restrict a{k}" for k in arrays),
        statements="\n        ".join(f"a{k}[i] = (a{k}[i] + g[i]) * 0.5f;" for k in arrays),
        arguments=", ".join(f"l->arrays[{k} * l->tensors + i]" for k in arrays),
    )


class Stream:
    """
    ## The kernel and its arrays

    `written[k][i]` is tensor i of the k-th array that is read and written, float32 and contiguous. The gradients of
    a step are given by `renew`. Raises `NoCompiler` where the kernel can't be compiled.
    """

    def __init__(self, written: Sequence[Sequence[Tensor]]) -> None:
        self._written = [list(tensors) for tensors in written]
        for tensor in (t for tensors in written for t in tensors):
            _check(tensor)
        offsets = array("q", [0])
        for tensor in written[0]:
            offsets.append(offsets[-1] + tensor.numel())
        self._offsets = offsets
        self._arrays = array("Q", [t.data_ptr() for tensors in written for t in tensors])
        self._grads = array("Q", [0]) * len(written[0])
        self._kernel = compiler.load(source(len(written)))
        self._launch = self._lay_out()
        self._address = ctypes.addressof(self._launch)

    def _lay_out(self) -> _Launch:
        launch = _Launch(len(self._grads), 1)
        launch.offsets, launch.grads, launch.arrays = (
            numbers.buffer_info()[0] for numbers in (self._offsets, self._grads, self._arrays)
        )
        runtime = compiler.openmp()
        if runtime is not None and self._offsets[-1] >= THREADING_ELEMENTS:
            launch.threads = torch.get_num_threads()
            launch.parallel, launch.thread, launch.team = runtime
        return launch

    def renew(self, grads: Sequence[Tensor]) -> None:
        """### Take these gradients for the next step"""
        for i, (grad, tensor) in enumerate(zip(grads, self._written[0], strict=True)):
            _check(grad)
            if grad.numel() != tensor.numel():
                raise ValueError(f"gradient {i} must have {tensor.numel()} elements. Received: {grad.numel()}")
            self._grads[i] = grad.data_ptr()
        self._held = list(grads)

    def step(self) -> None:
        """### Read and write everything once"""
        self._kernel.step(self._address)


def _check(tensor: Tensor) -> None:
    if tensor.dtype != torch.float32 or not tensor.is_contiguous():
        raise ValueError(f"tensors must be float32 and contiguous. Received: {tensor.dtype}, {tensor.stride()}")
