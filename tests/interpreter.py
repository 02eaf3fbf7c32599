"""
Triton kernels without a GPU: Triton's interpreter runs them on tensors of the CPU.

It is numpy underneath. What it lacks is put beside it here: the functions of libdevice; the rounding of bfloat16, which
it cuts off or, where a sum carries, gets wrong; and that what a comparison gives is no number, which it forgets where a
scalar is compared.
"""

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch

from optimizers.engines import device_launch, fused, triton_kernel, triton_launch


class Libdevice:
    """The functions that the kernels take from libdevice, by numpy."""

    def __getattr__(self, name):
        from triton.language import core
        from triton.runtime.interpreter import TensorHandle

        function = getattr(np, {"pow": "power"}.get(name, name))

        def call(*operands):
            handles = [operand.handle for operand in operands]
            data = np.asarray(function(*(h.data for h in handles)), handles[0].data.dtype)
            widest = max((operand.type for operand in operands), key=lambda kind: kind.is_block())
            return core.tensor(TensorHandle(data, handles[0].dtype.scalar), widest)

        return call


def load(source, real=triton_kernel.load):
    functions = real(source)
    functions["libdevice"] = Libdevice()
    return functions


def _cast(builder, src, dst_type, *_):
    """A conversion of floating-point numbers as processors do it."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype

    data, kind = src.data, dst_type.scalar
    if src.dtype.scalar == tl.bfloat16:
        data = (data.astype(np.uint32) << 16).view(np.float32)
    if kind == tl.bfloat16:
        whole = torch.from_numpy(np.atleast_1d(data.astype(np.float32))).to(torch.bfloat16).view(torch.int16)
        data = whole.numpy().view(np.uint16).reshape(np.shape(data))
    else:
        data = data.astype(_get_np_dtype(dst_type))
    return TensorHandle(data, kind)


def _binary(builder, lhs, rhs, op, *, real):
    """An operation, of which a comparison gives truth values."""
    import triton.language as tl

    made = real(builder, lhs, rhs, op)
    if np.asarray(made.data).dtype == np.bool_:
        made.dtype = tl.int1
    return made


@pytest.fixture
def interpreted(monkeypatch):
    """Have Triton's interpreter run the kernels of tensors on the CPU."""
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("cast_impl", "create_fp_to_fp", "create_fp_ext", "create_fp_trunc"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, _cast)
    real = interpreter.InterpreterBuilder.binary_op
    monkeypatch.setattr(interpreter.InterpreterBuilder, "binary_op", partialmethod(_binary, real=real))
    # Each sum of integers would be calculated once more, to see whether it has 32 bits.
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    for module in (triton_launch, device_launch):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(triton_kernel, "_loaded", {})
    monkeypatch.setitem(fused.LAUNCHES, "cpu", triton_launch.TritonLaunch)
    with np.errstate(all="ignore"):
        yield torch.device("cpu")


@pytest.fixture(
    params=[
        pytest.param("interpreter", marks=pytest.mark.triton),
        pytest.param(
            "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
        ),
    ]
)
def gpu(request):
    """Where the kernels of Triton run: on the CPU by the interpreter, or on a GPU."""
    if request.param == "interpreter":
        return request.getfixturevalue("interpreted")
    pytest.importorskip("triton")
    return torch.device("cuda", torch.cuda.current_device())
