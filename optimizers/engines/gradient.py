"""
---
title: Gradients as programs
summary: A Python function of an array, followed element by element; and functions that are compiled already.
---

# Gradients as programs

A gradient such as `lambda x: 2 * (x - target)` does the same to each element. It is called with a **point**, which
writes down what is done to it as the [recorder](recorder.html) does for a rule: operators, and functions of numpy and
torch. What comes out is a program. Its numbers and arrays are what they are at this call, so a closure may change from
call to call; only another formula makes another kernel.

What looks at values, or mixes elements (a sum, a slice, a product of matrices) is not followed. `record` then says what
it was, and where.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from optimizers.engines.program import Program, Unrecordable, path, program_of, refuse
from optimizers.engines.recorder import Recorded, Tape, select

#: How many arrays a gradient may use besides its argument.
MOST_ARRAYS = 8


class Recording:
    """
    ## What following a gradient gives

    The value `result` of `program`, whose leaves are the parameter and then `arrays`. `key` is the same for all
    recordings of one formula.
    """

    __slots__ = ("arrays", "key", "leaves", "node", "numbers", "result")

    def __init__(self, tape: Tape, result: int, arrays: list[Any]) -> None:
        self.node, self.result, self.numbers, self.arrays = tape.node, result, tape.scalars, arrays
        self.leaves = tape.leaves
        self.key = (tape.node, result, len(arrays))

    @property
    def program(self) -> Program:
        """What was written down."""
        return program_of(self.leaves, path(self.node))


# Recordings may be nested, and made by several threads; each has a tape of its own while it lasts.
_free_tapes: list[Tape] = []


def record(function: Callable[[Any], Any], like: Any) -> Recording:
    """## Follow a gradient. `like` is an array as its argument will be. Raises `Unrecordable`"""
    try:
        tape = _free_tapes.pop()
    except IndexError:
        tape = Tape(("param", *(f"array{k}" for k in range(MOST_ARRAYS))))
    # Points change no value in place, so there is nothing else to rewind.
    tape.node, tape.scalars = tape.root, []
    follower = _Follower(tape, like)
    try:
        value = follower.value(function(Point(follower, tape.values[0])))
        if value.__class__ is not Recorded:
            # A number, or a comparison.
            refuse("the gradient is not an array", "a kernel needs a number for each element")
        return Recording(tape, value.id, follower.arrays)
    except Unrecordable:
        raise
    except Exception as error:
        # Whatever else goes wrong with a point may go well with an array.
        raise Unrecordable(f"the gradient can't be followed: {type(error).__name__}: {error}") from error
    finally:
        _free_tapes.append(tape)


class _Follower:
    """What the points of one recording have in common."""

    __slots__ = ("arrays", "like", "tape")

    def __init__(self, tape: Tape, like: Any) -> None:
        self.tape, self.like = tape, like
        self.arrays: list[Any] = []

    def value(self, operand: Any) -> Any:
        """What stands for an operand on the tape: a value, or a number."""
        kind = operand.__class__
        if kind is Point:
            return operand._value
        if kind is float:
            return operand
        if kind is int or isinstance(operand, (float, int, np.floating, np.integer)):
            return float(operand)
        if isinstance(operand, (np.ndarray, Tensor)):
            return self._array(operand)
        refuse(f"a {kind.__name__} is an operand", "a kernel takes numbers and arrays")

    def _array(self, array: Any) -> Any:
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        if array.dtype.kind not in "fiu":
            refuse(f"an array of {array.dtype} is an operand", "a kernel takes real numbers")
        shape = tuple(self.like.shape)
        if array.size == 1 and array.ndim <= len(shape):
            return float(array.reshape(())[()])
        for k, known in enumerate(self.arrays):
            if known is array:
                return self.tape.values[1 + k]
        if len(self.arrays) == MOST_ARRAYS:
            refuse(f"more than {MOST_ARRAYS} arrays are operands", "put what is fixed into one")
        if array.shape != shape:
            refuse(f"an array of shape {array.shape} is an operand", f"a kernel takes those of x0, {shape}")
        self.arrays.append(array)
        return self.tape.values[len(self.arrays)]


# ## Operations


def _power(base: Any, exponent: Any) -> Any:
    if exponent.__class__ is float and exponent in (3.0, 4.0):
        square = base.square()
        return square.square() if exponent == 4.0 else square.mul(base)
    return base**exponent


def _method(name: str) -> Callable[..., Any]:
    return operator.methodcaller(name)


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda one, two: function(two, one)


def _symmetric(name: str) -> Callable[[Any, Any], Any]:
    return lambda one, two: getattr(one, name)(two) if isinstance(one, Recorded) else getattr(two, name)(one)


def _c_function(name: str) -> Callable[[Any], Any]:
    return lambda one: one._tape.make((name, one.id))


def _clip(value: Any, low: Any, high: Any) -> Any:
    return value.clamp(low, high)


#: Functions of C that a rule has no need of, by their names in numpy and torch.
C_FUNCTIONS = {
    **{n: n for n in ("sin", "cos", "tan", "sinh", "cosh", "expm1", "log1p", "cbrt", "exp2", "log2", "log10")},
    **{f"arc{n}": f"a{n}" for n in ("sin", "cos", "tan")},
    **{f"a{n}": f"a{n}" for n in ("sin", "cos", "tan")},
}

#: By the names of numpy's functions and torch's.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "__radd__"), operator.add),
    **dict.fromkeys(("subtract", "sub"), operator.sub),
    **dict.fromkeys(("rsub", "__rsub__"), _swapped(operator.sub)),
    **dict.fromkeys(("multiply", "mul", "__rmul__"), operator.mul),
    **dict.fromkeys(("divide", "true_divide", "div"), operator.truediv),
    **dict.fromkeys(("__rdiv__", "__rtruediv__"), _swapped(operator.truediv)),
    **dict.fromkeys(("power", "pow", "float_power"), _power),
    "__rpow__": _swapped(_power),
    **dict.fromkeys(("negative", "neg"), operator.neg),
    **dict.fromkeys(("positive", "copy", "clone", "detach"), lambda one: one),
    **dict.fromkeys(("absolute", "abs", "fabs"), operator.abs),
    **{name: _method(name) for name in ("sqrt", "rsqrt", "square", "reciprocal", "exp", "log", "tanh", "sign")},
    **{name: _symmetric(name) for name in ("maximum", "minimum")},
    **dict.fromkeys(("less", "lt"), operator.lt),
    **dict.fromkeys(("less_equal", "le"), operator.le),
    **dict.fromkeys(("greater", "gt"), operator.gt),
    **dict.fromkeys(("greater_equal", "ge"), operator.ge),
    **dict.fromkeys(("equal", "eq"), operator.eq),
    **dict.fromkeys(("not_equal", "ne"), operator.ne),
    **dict.fromkeys(("logical_and", "bitwise_and"), operator.and_),
    **dict.fromkeys(("logical_or", "bitwise_or"), operator.or_),
    **dict.fromkeys(("logical_not", "invert", "bitwise_not"), operator.invert),
    **dict.fromkeys(("clip", "clamp"), _clip),
    "where": select,
    "zeros_like": lambda one: one.zeros_like(),
    "ones_like": lambda one: one.ones_like(),
    **{name: _c_function(of) for name, of in C_FUNCTIONS.items()},
}


def _operator(name: str, swapped: bool = False) -> Any:
    function = _FUNCTIONS[name]

    def method(self: Point, other: Any) -> Any:
        one, two = self._value, self._follower.value(other)
        return Point(self._follower, function(two, one) if swapped else function(one, two))

    return method


def _unary(name: str) -> Any:
    function = _FUNCTIONS[name]
    return lambda self: Point(self._follower, function(self._value))


class Point:
    """## What stands for the argument of a gradient, and for what is made of it"""

    __slots__ = ("_follower", "_value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, follower: _Follower, value: Any) -> None:
        self._follower, self._value = follower, value

    __add__, __radd__ = _operator("add"), _operator("add", True)
    __sub__, __rsub__ = _operator("sub"), _operator("sub", True)
    __mul__, __rmul__ = _operator("mul"), _operator("mul", True)
    __truediv__, __rtruediv__ = _operator("div"), _operator("div", True)
    __pow__, __rpow__ = _operator("pow"), _operator("pow", True)
    __lt__, __le__, __gt__, __ge__ = map(_operator, ("lt", "le", "gt", "ge"))
    __eq__, __ne__ = _operator("eq"), _operator("ne")
    __and__, __or__ = _operator("bitwise_and"), _operator("bitwise_or")
    __neg__, __pos__, __abs__, __invert__ = map(_unary, ("neg", "positive", "abs", "invert"))

    @property
    def shape(self) -> Any:
        return self._follower.like.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        return self._follower.like.dtype

    @property
    def size(self) -> Any:
        return self._follower.like.size

    def numel(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self._follower.like)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("the values of the argument are looked at, or its elements mixed", "a kernel does the same to each")

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __contains__ = __array__ = __complex__ = _refuse
    __getitem__ = __setitem__ = __matmul__ = __rmatmul__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name not in _FUNCTIONS:
            refuse(f"`{name}` is not done element by element", "a kernel does the same to each")
        return lambda *others: self._apply(name, self, *others)

    def _apply(self, name: str, *operands: Any) -> Point:
        function = _FUNCTIONS.get(name)
        if function is None:
            refuse(f"`{name}` is not done element by element", "a kernel does the same to each")
        follower = self._follower
        return Point(follower, function(*(None if o is None else follower.value(o) for o in operands)))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs:
            refuse(f"`{ufunc.__name__}.{method}` is given options", "write it with operators")
        return self._apply(ufunc.__name__, *inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if kwargs:
            refuse(f"`{function.__name__}` is given {', '.join(kwargs)}", "write it with operators")
        return self._apply(function.__name__, *args)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", str(function))
        point = next((a for a in args if a.__class__ is Point), None)
        if kwargs or point is None:
            refuse(f"`torch.{name}` is given {', '.join(kwargs or args)}", "write it with operators")
        return point._apply(name, *args)


# ## Functions that are compiled

_SIGNATURE = "void (const double *theta, double *grad, int64_t n)"
_INTEGERS = {"int64_t", "long", "long long", "ssize_t", "Py_ssize_t", "ptrdiff_t", "intptr_t", "npy_intp", "intp_t"}

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, (ctypes.py_object,)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def native_address(function: Any) -> int | None:
    """
    ## The address of a compiled gradient, or None where it is a function of Python

    It may be a `scipy.LowLevelCallable`, a `numba.cfunc`, or a function or pointer of ctypes. Raises `ValueError` if
    its signature is known and is another one.
    """
    if isinstance(function, ctypes.c_void_p):
        return _not_null(function.value)
    if isinstance(function, ctypes._CFuncPtr):  # type: ignore[attr-defined]
        _check_types(function)
        return _not_null(ctypes.cast(function, ctypes.c_void_p).value)
    kind = type(function)
    if kind.__name__ == "LowLevelCallable" and kind.__module__.startswith("scipy."):
        return _of_callable(function)
    if isinstance(getattr(function, "address", None), int) and hasattr(function, "ctypes"):
        # What numba makes of a function.
        return native_address(function.ctypes)
    return None


def _not_null(address: int | None) -> int:
    if not address:
        raise ValueError("jac is a null pointer: it must be the address of a function")
    return address


def _of_callable(function: Any) -> int:
    if function.user_data is not None:
        raise ValueError(f"jac is a LowLevelCallable with user_data, which has no place in {_SIGNATURE}")
    capsule = tuple.__getitem__(function, 0)
    name = _capsule_name(capsule)
    if name is not None:
        _check_text(name.decode())
    return _not_null(_capsule_pointer(capsule, name))


def _check_text(signature: str) -> None:
    result, _, rest = signature.partition("(")
    words = [" ".join(part.replace("*", " * ").replace("const", "").split()) for part in rest.rstrip(") ").split(",")]
    pointers = [word.startswith("double *") and word.count("*") == 1 for word in words[:2]]
    integers = [word in _INTEGERS or word.rpartition(" ")[0] in _INTEGERS for word in words[2:]]
    if result.strip() != "void" or pointers != [True, True] or integers != [True]:
        _refuse_signature(signature)


def _check_types(function: Any) -> None:
    types = function.argtypes
    if types is None:
        # Nobody has said what it takes.
        return
    doubles = (ctypes.POINTER(ctypes.c_double), ctypes.c_void_p)
    names = [getattr(t, "_type_", None) for t in types]
    fits = (
        len(types) == 3
        and all(t in doubles or names[i] is ctypes.c_double for i, t in enumerate(types[:2]))
        and ctypes.sizeof(types[2]) == 8
        and names[2] in ("l", "q")
    )
    if not fits or function.restype not in (None, ctypes.c_int):
        _refuse_signature(f"{function.restype} {types}")


def _refuse_signature(received: str) -> NoReturn:
    raise ValueError(f"a compiled gradient must be {_SIGNATURE}. Received: {received}")
