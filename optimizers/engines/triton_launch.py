"""
---
title: A launch on a GPU
summary: One Triton kernel, in the stream of the device, with its addresses and numbers in the memory of the device.
---

# A launch on a GPU

What a step costs here is mostly the time that Python takes to ask for it, so little is asked. The addresses of
parameters and states, the sizes and the list of blocks are brought to the device once. What is new at a step, the
addresses of the gradients and the numbers, is written side by side into one piece of pinned memory, and goes over in
one copy, which nobody waits for. That memory is torch's own to reuse: it keeps it until the copy is done.

The counts of the steps stay in the memory of the host, so nothing is read back from the device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from optimizers.engines import compiler
from optimizers.engines.c_kernel import COUNTER
from optimizers.engines.compiler import NoCompiler
from optimizers.engines.launch import Launch, place
from optimizers.engines.program import Program
from optimizers.engines.shard import local
from optimizers.engines.state import CPU
from optimizers.engines.triton_kernel import BLOCK, WARPS, load, triton_source

#: Not for speed: a product and a sum are contracted where the formula says so, and nowhere else.
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": False}


class TritonLaunch(Launch):
    """## A launch of a Triton kernel"""

    has_numbers = True

    @staticmethod
    def printed(title: str, program: Program, real: torch.dtype, slots: Sequence[torch.dtype]) -> str:
        """### The source, for a dtype of the arithmetic and the dtypes in memory"""
        return triton_source(title, [program], real, slots)

    def _load(self) -> None:
        self.kernel = compiler.load(COUNTER)
        self.function = load(self.source)["step"]

    def _lay_out(self) -> None:
        super()._lay_out()
        n, rows = len(self.params), len(self.cohorts)
        self.device = local(self.params[0]).device
        with torch.no_grad(), on(self.device):
            self.fixed = table(self.addresses, self.sizes, [self.numbers * row for row in self.of_tensor], self.device)
            self.fresh = Fresh(n, rows * self.numbers, self.device)
            numbers = self.fresh.words.view(torch.float64)
            self._arguments = (self.fixed, self.fresh.grads, numbers, n)
            self._blocks = blocks(self.sizes)
            compile_now(self.function, self._arguments, BLOCK=BLOCK)

    def run(self, state_is_known: bool) -> None:
        """### Step: the counts here, the tensors there"""
        with on(self.device):
            # First what may fail. It writes nothing that counts.
            self.fresh.send(place(self.table) + 8 * len(self.params), place(self.row), self.fresh.memory())
            self.kernel.step(self.argument)
            if self._blocks:
                self.function[(self._blocks,)](*self._arguments, BLOCK=BLOCK, **OPTIONS)
        self.look.mark()
        if state_is_known:
            self.look.mark_states()


class Fresh:
    """
    ## What is new at each step, in the memory of the device

    `n` addresses of gradients, and some more words of 8 bytes.
    """

    def __init__(self, n: int, words: int, device: torch.device) -> None:
        self._n, self._words = n, words
        # Kernels differ by whether their arguments lie at a multiple of 16 bytes, so let both.
        self._begin = n + n % 2
        self._pinned = device.type != "cpu"
        self._all = torch.zeros(self._begin + words, dtype=torch.int64, device=device)
        self.grads = self._all[:n]
        self.words = self._all[self._begin :]

    def memory(self) -> Tensor:
        """### Memory of the host to copy from"""
        return torch.empty(self._all.numel(), dtype=torch.int64, device=CPU, pin_memory=self._pinned)

    def send(self, grads: int, words: int, host: Tensor) -> None:
        """### Bring over what lies at these addresses, by way of this memory of the host"""
        at = host.data_ptr()
        ctypes.memmove(at, grads, 8 * self._n)
        ctypes.memmove(at + 8 * self._begin, words, 8 * self._words)
        self._all.copy_(host, non_blocking=True)


def on(device: torch.device) -> Any:
    """The device as the current one, for which Triton launches."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def is_capturing(device: torch.device) -> bool:
    """Whether what is asked of a device is not done but written down for a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def blocks(sizes: list[int]) -> int:
    """How many blocks there are."""
    return sum((size + BLOCK - 1) // BLOCK for size in sizes)


def table(addresses: list[list[int]], sizes: list[int], rows: list[int], device: torch.device) -> Tensor:
    """
    ### What stays: addresses by slot but for those of the gradients, sizes, where the numbers begin, and the blocks

    A block is an index of a tensor, and in the lower 32 bits that of the block in it.
    """
    slots = [addresses[0], *addresses[2:]]
    # An address is an unsigned number.
    with CPU:
        head = torch.tensor([ctypes.c_int64(at).value for slot in slots for at in slot], dtype=torch.int64)
        count = (torch.tensor(sizes) + BLOCK - 1) // BLOCK
        tensor = torch.repeat_interleave(torch.arange(len(sizes)), count)
        first = torch.repeat_interleave(count.cumsum(0) - count, count)
        block = (tensor << 32) | (torch.arange(tensor.numel()) - first)
        return torch.cat([head, torch.tensor(sizes), torch.tensor(rows), block]).to(device)


def compile_now(function: Any, arguments: tuple[Any, ...], **constants: Any) -> None:
    """### Compile a kernel before anything is done. Raises `NoCompiler`"""
    # Triton's interpreter has nothing to compile.
    warm_up = getattr(function, "warmup", lambda *_, **__: None)
    try:
        warm_up(*arguments, grid=(1,), **constants, **OPTIONS)
    except Exception as error:
        raise NoCompiler(f"Triton failed to compile the kernel: {type(error).__name__}: {error}"[:2000]) from error
