"""
---
title: A walk to a minimum
summary: The loop of `minimize`, as one kernel where that can be, and otherwise step by step.
---

# A walk to a minimum

A walk is begun as one kernel. Whatever stands in the way of that is found before the first step, so the same walk can
then be taken step by step: by an optimizer as in training, with the gradient from torch, Python or C.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.optimize import OptimizeResult
from torch import Tensor

from optimizers.engines.compiler import NoCompiler
from optimizers.engines.descent import CLOSENESS, DIFFERS, GOES_ON, Memory, descend, kernel, prepare
from optimizers.engines.gradient import Recording, native_address, record
from optimizers.engines.program import Unrecordable
from optimizers.engines.watch import Watch

#: What a walk ends with, as scipy counts: where it converged, after all steps, at NaN or infinity, by the callback.
CONVERGED, ALL_STEPS, NOT_FINITE, STOPPED = 0, 1, 2, 99

_STATUS = {GOES_ON: ALL_STEPS, 1: CONVERGED, 2: NOT_FINITE}
_DTYPES = {"d": torch.float64, "f": torch.float32, "e": torch.float16}
_NATIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Known:
    """
    ## What is known of a gradient in Python

    The form of its recording, which was seen to give the same numbers. At its second walk the recording itself is kept,
    until something changes to which the function refers.
    """

    __slots__ = ("_kind", "_recording", "_watch", "key")

    def __init__(self, key: Any) -> None:
        self.key = key
        self._watch: Watch | None = None

    def keep(self, function: Any, recording: Recording, like: Any) -> None:
        """### Keep a recording, if it can be told whether it still holds"""
        if self._watch is None or self._watch.is_settled:
            self._watch = Watch(function)
            self._recording, self._kind = recording, (like.__class__, like.shape, like.dtype)

    def recording(self, like: Any) -> Recording | None:
        """### The recording that was kept, if it still holds"""
        if self._watch is None or self._kind != (like.__class__, like.shape, like.dtype):
            return None
        return self._recording if self._watch.is_unchanged() else None


_known: WeakKeyDictionary[Any, Known] = WeakKeyDictionary()


@dataclass(slots=True)
class End:
    """## Where a walk ended, and how"""

    status: int
    nit: int
    moved: float
    x: Any
    jac: Any
    way: str
    reason: str = ""
    fun: float = math.nan


class Walk:
    """## A walk, with the arguments of `minimize`"""

    def __init__(self, fun: Any, x0: Any, jac: Any, optimizer: Any, options: dict[str, Any], callback: Any) -> None:
        native = 0 if jac is None or jac.__class__ is _FUNCTION else native_address(jac) or 0
        _check_callable(fun, jac, native, callback)
        self._fun, self._jac, self._optimizer, self._options = fun, jac, optimizer, options
        self._callback = None if callback is None else _as_scipy(callback)
        self._start: Any = x0 if x0.__class__ is np.ndarray and x0.dtype is _FLOAT64 and x0.ndim else beginning(x0)
        self._is_torch = self._start.__class__ is not np.ndarray
        self._dtype: torch.dtype = self._start.dtype if self._is_torch else _DTYPES[self._start.dtype.char]
        self._native = native
        if native and (self._dtype != torch.float64 or self._is_elsewhere):
            raise TypeError(f"a compiled gradient takes float64 on the CPU: give such an x0. Received: {self._dtype}")
        #: How often `fun` was calculated.
        self.evaluations = 0

    @property
    def _is_elsewhere(self) -> bool:
        return self._is_torch and self._start.device.type != "cpu"

    def go(self, steps: int, tolerance: float, base: type) -> End:
        """### Take up to `steps` steps, until one is shorter than the root of `tolerance`"""
        end = self._by_kernel(steps, tolerance, base)
        if isinstance(end, str):
            end = self._by_steps(steps, tolerance, end)
        if self._fun is not None and self._jac is not None:
            end.fun = self._value(end.x)
        return end

    # ### What the user's functions say

    def _value(self, x: Any) -> float:
        self.evaluations += 1
        if not self._is_torch:
            return _number(self._fun(x.copy()))
        with torch.no_grad():
            return _number(self._fun(x.clone()))

    def _gradient(self, x: Any) -> Any:
        """The gradient that a function of Python gives."""
        found: Any
        if self._is_torch:
            with torch.no_grad():
                found = torch.as_tensor(self._jac(x.clone()), dtype=self._dtype, device=x.device)
        else:
            found = self._jac(x.copy())
            if found.__class__ is not np.ndarray:
                found = np.asarray(found)
        if found.shape != x.shape:
            raise ValueError(
                f"jac must give an array of the shape of x0, {tuple(x.shape)}. Received one of {tuple(found.shape)}"
            )
        return found

    def _tell(self, nit: int, x: Any) -> bool:
        """Tell the callback, if there is one; False if that is to be the end."""
        if self._callback is None:
            return True
        known = {} if self._fun is None else {"fun": self._value(x)}
        try:
            self._callback(OptimizeResult(x=x, nit=nit, **known))
        except StopIteration:
            return False
        return True

    # ### One kernel

    def _by_kernel(self, steps: int, tolerance: float, base: type) -> End | str:
        """The walk as one kernel, or why not."""
        if self._jac is None:
            return "without jac it is torch that differentiates fun"
        ready = prepare(self._optimizer, self._options, base)
        if ready.rule is None:
            return ready.reason
        if self._dtype not in CLOSENESS or self._is_elsewhere:
            return f"loops are compiled for float64 and float32 on the CPU, not for {self._dtype}"
        recording, expected, start = None, None, self._start
        try:
            if not self._native:
                recording, is_new = self._recording()
            loop = kernel(ready.rule, recording, self._dtype)
        except (Unrecordable, NoCompiler) as error:
            return str(error)
        memory = loop.memory(start.numel() if self._is_torch else start.size)
        values = start.numpy() if self._is_torch else start
        try:
            if recording is None:
                memory.native(self._native)
                memory.begin(values, ready.numbers, ())
                return self._run(memory, steps, tolerance)
            if is_new:
                expected = np.asarray(self._gradient(start))
            memory.begin(values, (*ready.numbers, *recording.numbers), recording.arrays, expected)
            end = self._run(memory, steps, tolerance)
            if is_new and not isinstance(end, str):
                with contextlib.suppress(TypeError):
                    _known[self._jac] = Known(recording.key)
            return end
        finally:
            loop.give_back(memory)

    def _recording(self) -> tuple[Recording, bool]:
        """What following the gradient gives, and whether it is yet to be seen that the numbers agree."""
        try:
            known = _known.get(self._jac)
        except TypeError:
            known = None
        if known is None:
            return record(self._jac, self._start), True
        recording = known.recording(self._start)
        if recording is None:
            recording = record(self._jac, self._start)
            if recording.key != known.key:
                return recording, True
            if self._jac.__class__ is _FUNCTION and not recording.arrays:
                known.keep(self._jac, recording, self._start)
        return recording, False

    def _run(self, memory: Memory, steps: int, tolerance: float) -> End | str:
        way = "one kernel"
        if self._callback is None:
            ending, nit, moved = descend(memory, steps, tolerance, bool(self._native))
        else:
            way = "one kernel, called for each step"
            ending, nit, moved = memory.run(0, 0, tolerance)
            while ending == GOES_ON and nit < steps:
                ending, nit, moved = memory.run(nit, nit + 1, tolerance)
                if not self._tell(nit, self._given(memory.x)):
                    return End(STOPPED, nit, moved, self._given(memory.x), self._given(memory.jac), way)
        if ending == DIFFERS:
            return "jac gives something else than what following it gives: is it a function of its argument alone?"
        return End(_STATUS[ending], nit, moved, self._given(memory.x), self._given(memory.jac), way)

    def _given(self, values: Any) -> Any:
        """A copy of what is in the memory of a loop, as the user has it."""
        values = values.copy()
        if self._start.ndim != 1:
            values = values.reshape(self._start.shape)
        return torch.from_numpy(values) if self._is_torch else values

    # ### Step by step

    def _by_steps(self, steps: int, tolerance: float, reason: str) -> End:
        """The walk step by step, because of `reason`."""
        param = torch.as_tensor(self._start).clone(memory_format=torch.contiguous_format).requires_grad_()
        optimizer, before = self._optimizer([param], **self._options), torch.empty_like(param, requires_grad=False)
        value, grad = self._ask(param)
        nit, moved, status = 0, 0.0, ALL_STEPS
        while nit < steps and status == ALL_STEPS:
            before.copy_(param.detach())
            param.grad = grad
            optimizer.step()
            nit += 1
            moved = float((param.detach() - before).double().square_().sum())
            value, grad = self._ask(param)
            if not self._tell(nit, self._shown(param.clone())):
                status = STOPPED
            elif moved < tolerance:
                status = CONVERGED
            elif not moved < math.inf:
                status = NOT_FINITE
        x, jac = self._shown(param), self._shown(grad)
        return End(status, nit, moved, x, jac, "step by step", reason, value)

    def _shown(self, tensor: Tensor) -> Any:
        return tensor.detach() if self._is_torch else tensor.detach().numpy()

    def _ask(self, param: Tensor) -> tuple[float, Tensor]:
        """The value, where it is known, and the gradient."""
        if self._jac is None:
            return self._differentiate(param)
        x = param.detach()
        if self._native:
            grad = torch.zeros_like(x)
            _NATIVE(self._native)(x.data_ptr(), grad.data_ptr(), x.numel())
            return math.nan, grad
        found = self._gradient(self._shown(x))
        return math.nan, torch.as_tensor(found).to(self._dtype, copy=True)

    def _differentiate(self, param: Tensor) -> tuple[float, Tensor]:
        self.evaluations += 1
        try:
            with torch.enable_grad():
                value = self._fun(param)
        except (RuntimeError, TypeError) as error:
            if "numpy" not in str(error):
                raise
            raise TypeError(f"{_DIFFERENTIABLE}. It went to numpy: {error}") from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{_DIFFERENTIABLE}, one number. Received: {what}")
        (grad,) = torch.autograd.grad(value.reshape(()), param, materialize_grads=True)
        return float(value.detach()), grad


# ## Arguments

_FUNCTION, _FLOAT64 = type(lambda: None), np.dtype("d")
_DIFFERENTIABLE = "without jac, fun is given a torch.Tensor and must calculate with torch what it gives"


def _check_callable(fun: Any, jac: Any, native: int, callback: Any) -> None:
    if fun is None and jac is None:
        raise TypeError("minimize needs fun or its gradient: minimize(fun, x0) or minimize(None, x0, jac=...)")
    if not (fun is None or callable(fun)):
        raise TypeError(f"fun must be a function or None. Received: {fun!r}")
    if not (callback is None or callable(callback)):
        raise TypeError(f"callback must be a function or None. Received: {callback!r}")
    if not (native or jac is None or callable(jac)):
        raise TypeError(f"jac must be a function, a compiled one, or None for torch's gradient. Received: {jac!r}")


def _as_scipy(callback: Callable[..., Any]) -> Callable[[OptimizeResult], Any]:
    """Called as scipy calls it: which way, the name of its argument says."""
    try:
        names = set(signature(callback).parameters)
    except (TypeError, ValueError):
        names = set()
    if names == {"intermediate_result"}:
        return lambda now: callback(intermediate_result=now)
    return lambda now: callback(now.x)


def beginning(x0: Any) -> Any:
    """### `x0` as an array or a tensor of real numbers"""
    if x0 is None:
        raise TypeError("minimize needs x0, the point to begin at: minimize(fun, x0)")
    if isinstance(x0, Tensor):
        if x0.is_complex() or x0.layout != torch.strided:
            raise TypeError(f"x0 must be a dense tensor of real numbers. Received: {x0.dtype}, {x0.layout}")
        return x0.detach() if x0.is_floating_point() else x0.detach().double()
    array = np.atleast_1d(np.asarray(x0))
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.char not in _DTYPES:
        raise TypeError(f"x0 must be of real numbers, float64 or shorter. Received: {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)
