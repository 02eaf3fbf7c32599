"""
---
title: The recorder
summary: Values that write down what a rule does to them, and the tape that they write on.
---

# The recorder

To turn a rule into a kernel we must know what it computes. So we run it, on values that hold no numbers: each
operation is written on a **tape** and gives a new value. Afterwards the tape *is* the rule, on the branch it took.

The rule is read again at every step with the numbers of that step, so a schedule or an `if` on a number needs no
care. That has to be quick. So the tape walks along the [tree of all readings](program.html): as long as the rule does
what it did before, an operation costs one look. Numbers are not part of the tree. They are gathered in a list
beside it, and are an argument of the kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from optimizers.engines.program import Node, Operation, Program, path, program_of, refuse, rule_line
from optimizers.engines.state import StateView


class Tape:
    """
    ## The tape

    `leaves` are the names of the values that a rule is given. A reading starts by `rewind`, hands `param`, `grad` and
    `state` to the rule, and ends with `program`.
    """

    __slots__ = ("leaves", "node", "root", "scalars", "starts", "values")

    def __init__(self, leaves: tuple[str, ...]) -> None:
        self.leaves = leaves
        self.values = [Recorded(self, id) for id in range(len(leaves))]
        self.starts = [(value, value.id) for value in self.values]
        self.root = Node(len(leaves) - 1, None, (), "")
        self.node = self.root
        self.scalars: list[Any] = []

    @property
    def param(self) -> Recorded:
        """What stands for the parameter."""
        return self.values[0]

    @property
    def grad(self) -> Recorded:
        """What stands for its gradient."""
        return self.values[1]

    def state(self, others: dict[str, Any]) -> RecordedState:
        """A state of this tape's values; `others` are the entries that are no tensors."""
        state = RecordedState(self, zip(self.leaves[2:], self.values[2:], strict=True))
        dict.update(state, others)
        return state

    def rewind(self) -> None:
        """Start another reading."""
        self.node = self.root
        self.scalars = []
        for value, id in self.starts:
            value.id = id

    def make(self, operation: Operation) -> Recorded:
        """Write down an operation that makes a new object."""
        node = self.node = self.node[operation]
        made: Recorded | None = node.object
        if made is None:
            made = node.object = Recorded(self, node.id)
        made.id = node.id
        return made

    def compare(self, operation: Operation) -> Mask:
        """Write down a comparison."""
        node = self.node = self.node[operation]
        return Mask(self, node.id)

    def operand(self, value: Any, mask_allowed: bool = False) -> int | None:
        """A value's id; a number goes to the scalars and leaves None."""
        if value.__class__ is Recorded or (mask_allowed and value.__class__ is Mask):
            id: int = value.id
            return id
        return self.number(value)

    def number(self, value: Any) -> int | None:
        """Note a number, and give what stands for it among the operands."""
        if value.__class__ is not float:
            if isinstance(value, Mask):
                _refuse_mask()
            if isinstance(value, Recorded):
                refuse("a tensor is given where only a number can be", "multiply by it first")
            if isinstance(value, Tensor) and value.numel() != 1:
                refuse("a tensor of the rule's own is an operand", "a kernel has parameters, gradients and states")
            if value is None or isinstance(value, str):
                raise TypeError(f"a number is needed where the rule has {value!r} ({rule_line()})")
        self.scalars.append(value)
        return None

    def program(self, node: Node) -> Program:
        """The program of the reading that ended at `node`."""
        if node.program is None:
            node.program = program_of(self.leaves, path(node))
        return node.program


class RecordedState(StateView):
    """## A state whose assignments are written down as well"""

    def __init__(self, tape: Tape, values: Any) -> None:
        super().__init__(values)
        self._tape = tape
        #: Whether the rule has assigned an entry, so that this object can't serve for another reading.
        self.written = False

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "step":
            return
        self.written = True
        if isinstance(value, Mask):
            value = value.to()
        if isinstance(value, Recorded):
            self._tape.node = self._tape.node["store", name, value.id]
        elif not isinstance(value, Real):
            refuse(f"state[{name!r}] is set to a {type(value).__name__}", "a step may store values and numbers")
        elif name not in self:
            refuse(f"state[{name!r}] is set to a number", "a number in the state must be named in `scalar_state`")
        dict.__setitem__(self, name, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        refuse("the state is changed as a whole", 'set its entries one by one: state["name"] = value')

    update = setdefault = pop = popitem = clear = __delitem__ = __ior__ = _refuse


# ## The vocabulary
#
# What a kernel can do. Each maker gives the method that returns a new value and the one that works in place. What rules
# use most is written out rather than composed, because every call costs its time at every step, for every cohort.

Methods = tuple[Callable[..., Any], Callable[..., Any]]


def _unary(name: str) -> Methods:
    in_place = name + "_"

    def method(self: Recorded) -> Recorded:
        tape = self._tape
        node = tape.node.newest
        if node.name is not name or node.one != self.id:
            node = tape.node[name, self.id]
        tape.node = node
        made: Recorded | None = node.object
        if made is None:
            made = node.object = Recorded(tape, node.id)
        made.id = node.id
        return made

    def method_(self: Recorded) -> Recorded:
        tape = self._tape
        node = tape.node = tape.node[in_place, self.id]
        self.id = node.id
        return self

    return method, method_


def _binary(name: str, mask_allowed: bool = False) -> Methods:
    in_place = name + "_"

    def method(self: Recorded, other: Any) -> Recorded:
        return self._tape.make((name, self.id, self._tape.operand(other, mask_allowed)))

    def method_(self: Recorded, other: Any) -> Recorded:
        tape = self._tape
        if other.__class__ is float:
            tape.scalars.append(other)
            node = tape.node.newest
            if node.name is not in_place or node.one != self.id or node.two is not None:
                node = tape.node[in_place, self.id, None]
            tape.node = node
        else:
            node = tape.node = tape.node[in_place, self.id, tape.operand(other, mask_allowed)]
        self.id = node.id
        return self

    return method, method_


def _quotient(name: str) -> Methods:
    in_place = name + "_"

    def operation(name: str, self: Recorded, other: Any, rounding_mode: str | None) -> Operation:
        if rounding_mode is not None:
            refuse(f"`div` rounds by {rounding_mode!r}", "the kernels divide without")
        if not isinstance(other, (Recorded, Mask, Tensor)) and not 1e-37 < abs(other) < 1e37:
            # The reciprocal of so small or large a number is none.
            name = "exact_" + name
        return (name, self.id, self._tape.operand(other))

    def method(self: Recorded, other: Any, *, rounding_mode: str | None = None) -> Recorded:
        return self._tape.make(operation(name, self, other, rounding_mode))

    def method_(self: Recorded, other: Any, *, rounding_mode: str | None = None) -> Recorded:
        tape = self._tape
        if other.__class__ is float and 1e-37 < other < 1e37 and rounding_mode is None:
            tape.scalars.append(other)
            node = tape.node.newest
            if node.name is not in_place or node.one != self.id or node.two is not None:
                node = tape.node[in_place, self.id, None]
            tape.node = node
        else:
            node = tape.node = tape.node[operation(in_place, self, other, rounding_mode)]
        self.id = node.id
        return self

    return method, method_


# None is no number, but something that a group lacks.
_NOT_GIVEN: Any = object()


def _scaled(name: str) -> Methods:
    in_place = name + "_"

    def method(self: Recorded, other: Any, *, alpha: Any = _NOT_GIVEN) -> Recorded:
        operand = self._tape.operand(other)
        if alpha is _NOT_GIVEN:
            return self._tape.make((name, self.id, operand))
        return self._tape.make((name, self.id, operand, self._tape.number(alpha)))

    def method_(self: Recorded, other: Any, *, alpha: Any = _NOT_GIVEN) -> Recorded:
        tape = self._tape
        if other.__class__ is float:
            operand = None
            tape.scalars.append(other)
        else:
            operand = other.id if other.__class__ is Recorded else tape.operand(other)
        if alpha is _NOT_GIVEN:
            node = tape.node = tape.node[in_place, self.id, operand]
        else:
            node = tape.node = tape.node[in_place, self.id, operand, tape.number(alpha)]
        self.id = node.id
        return self

    return method, method_


def _ternary(name: str) -> Methods:
    in_place = name + "_"

    def operation(name: str, self: Recorded, one: Any, two: Any, value: Any) -> Operation:
        tape = self._tape
        operands = (name, self.id, tape.operand(one), tape.operand(two))
        return operands if value is _NOT_GIVEN else (*operands, tape.number(value))

    def method(self: Recorded, tensor1: Any, tensor2: Any, *, value: Any = _NOT_GIVEN) -> Recorded:
        return self._tape.make(operation(name, self, tensor1, tensor2, value))

    def method_(self: Recorded, tensor1: Any, tensor2: Any, *, value: Any = _NOT_GIVEN) -> Recorded:
        tape = self._tape
        if value.__class__ is float and tensor1.__class__ is Recorded and tensor2.__class__ is Recorded:
            tape.scalars.append(value)
            node = tape.node.newest
            if (
                node.name is not in_place
                or node.one != self.id
                or node.two != tensor1.id
                or node.three != tensor2.id
                or node.size != 5
            ):
                node = tape.node[in_place, self.id, tensor1.id, tensor2.id, None]
            tape.node = node
        else:
            node = tape.node = tape.node[operation(in_place, self, tensor1, tensor2, value)]
        self.id = node.id
        return self

    return method, method_


def _lerp(name: str) -> Methods:
    in_place = name + "_"

    def method(self: Recorded, end: Any, weight: Any) -> Recorded:
        return self._tape.make((name, self.id, self._tape.operand(end), self._tape.operand(weight)))

    def method_(self: Recorded, end: Any, weight: Any) -> Recorded:
        tape = self._tape
        if weight.__class__ is float and end.__class__ is Recorded:
            tape.scalars.append(weight)
            node = tape.node.newest
            if node.name is not in_place or node.one != self.id or node.two != end.id or node.three is not None:
                node = tape.node[in_place, self.id, end.id, None]
            tape.node = node
        else:
            node = tape.node = tape.node[in_place, self.id, tape.operand(end), tape.operand(weight)]
        self.id = node.id
        return self

    return method, method_


def _composed(name: str, prepare: Callable[..., Operation]) -> Methods:
    in_place = name + "_"

    def method(self: Recorded, *args: Any, **kwargs: Any) -> Recorded:
        return self._tape.make(prepare(name, self, *args, **kwargs))

    def method_(self: Recorded, *args: Any, **kwargs: Any) -> Recorded:
        tape = self._tape
        node = tape.node = tape.node[prepare(in_place, self, *args, **kwargs)]
        self.id = node.id
        return self

    return method, method_


def _comparison(name: str) -> Callable[[Recorded, Any], Mask]:
    def method(self: Recorded, other: Any) -> Mask:
        return self._tape.compare((name, self.id, self._tape.operand(other)))

    return method


def _power(name: str, self: Recorded, exponent: Any) -> Operation:
    # The powers for which torch has a formula of its own; the exponent is then part of the program.
    if exponent.__class__ in (int, float) and exponent in _POWERS:
        return (_POWERS[exponent] + _end(name), self.id)
    return (name, self.id, self._tape.operand(exponent))


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _clamp(name: str, self: Recorded, min: Any = None, max: Any = None) -> Operation:
    if max is None:
        return _clamp_min("clamp_min" + _end(name), self, min)
    if min is None:
        return _clamp_max("clamp_max" + _end(name), self, max)
    if isinstance(min, Recorded) or isinstance(max, Recorded):
        return ("clamp_tensors" + _end(name), self.id, self._tape.operand(min), self._tape.operand(max))
    return (name, self.id, self._tape.number(min), self._tape.number(max))


def _clamp_min(name: str, self: Recorded, min: Any) -> Operation:
    # A bound that is a number and one that is a tensor treat NaN differently in torch.
    return ("maximum" + _end(name) if isinstance(min, Recorded) else name, self.id, self._tape.operand(min))


def _clamp_max(name: str, self: Recorded, max: Any) -> Operation:
    return ("minimum" + _end(name) if isinstance(max, Recorded) else name, self.id, self._tape.operand(max))


def _reflected(name: str, self: Recorded, other: Any) -> Operation:
    return (name, self._tape.number(other), self.id)


def _copy(name: str, self: Recorded, *, memory_format: Any = None) -> Operation:
    return (name, self.id)


def _copy_from(name: str, self: Recorded, src: Any, non_blocking: bool = False) -> Operation:
    return (name, self.id, self._tape.operand(src, mask_allowed=True))


def _fill(name: str, self: Recorded, value: Any) -> Operation:
    return (name, self.id, self._tape.operand(value))


def _end(name: str) -> str:
    return "_" if name.endswith("_") else ""


class Recorded:
    """## A value that writes down what is done to it"""

    __slots__ = ("_tape", "id")
    __hash__ = object.__hash__
    is_sparse = False

    def __init__(self, tape: Tape, id: int) -> None:
        self._tape = tape
        self.id = id

    add, add_ = _scaled("add")
    sub, sub_ = _scaled("sub")
    mul, mul_ = _binary("mul", mask_allowed=True)
    div, div_ = _quotient("div")
    pow, pow_ = _composed("pow", _power)
    maximum, _ = _binary("maximum")
    minimum, _ = _binary("minimum")
    addcmul, addcmul_ = _ternary("addcmul")
    addcdiv, addcdiv_ = _ternary("addcdiv")
    lerp, lerp_ = _lerp("lerp")
    clamp, clamp_ = _composed("clamp", _clamp)
    clamp_min, clamp_min_ = _composed("clamp_min", _clamp_min)
    clamp_max, clamp_max_ = _composed("clamp_max", _clamp_max)
    sqrt, sqrt_ = _unary("sqrt")
    rsqrt, rsqrt_ = _unary("rsqrt")
    reciprocal, reciprocal_ = _unary("reciprocal")
    square, square_ = _unary("square")
    abs, abs_ = _unary("abs")
    sign, sign_ = _unary("sign")
    neg, neg_ = _unary("neg")
    exp, exp_ = _unary("exp")
    log, log_ = _unary("log")
    tanh, tanh_ = _unary("tanh")
    lt, le, gt, ge = (_comparison(name) for name in ("lt", "le", "gt", "ge"))
    eq, ne = _comparison("eq"), _comparison("ne")
    clone, _ = _composed("copy", _copy)
    _, copy_ = _composed("set", _copy_from)
    _, fill_ = _composed("set", _fill)
    _rsub, _ = _composed("sub", _reflected)
    _rpow, _ = _composed("pow", _reflected)
    del _

    multiply, multiply_, divide, divide_, true_divide, subtract, subtract_ = mul, mul_, div, div_, div, sub, sub_
    negative, absolute, clip, clip_ = neg, abs, clamp, clamp_
    __add__ = __radd__ = add
    __sub__, __rsub__ = sub, _rsub
    __mul__ = __rmul__ = mul
    __truediv__ = div
    __pow__, __rpow__ = pow, _rpow
    __neg__, __abs__ = neg, abs
    __iadd__, __isub__, __imul__, __itruediv__, __ipow__ = add_, sub_, mul_, div_, pow_
    __lt__, __le__, __gt__, __ge__ = lt, le, gt, ge
    __eq__, __ne__ = eq, ne  # type: ignore[assignment]

    @property
    def data(self) -> Recorded:
        return self

    @property
    def dtype(self) -> Dtype:
        return DTYPE

    def __rtruediv__(self, other: Any) -> Recorded:
        # As torch does it, so that all readers round alike.
        return self.reciprocal().mul(other)  # type: ignore[no-any-return]

    def detach(self) -> Recorded:
        return self

    def zero_(self) -> Recorded:
        return self.fill_(0.0)  # type: ignore[no-any-return]

    def zeros_like(self, **_: Any) -> Recorded:
        return self.full_like(0.0)

    def ones_like(self, **_: Any) -> Recorded:
        return self.full_like(1.0)

    def full_like(self, fill_value: Any, **_: Any) -> Recorded:
        return self._tape.make(("copy", self._tape.number(fill_value)))

    def where(self, condition: Any, other: Any) -> Recorded:
        return select(condition, self, other)

    def to(self, *args: Any, **kwargs: Any) -> Recorded:
        # All values of a program have one dtype.
        return self

    float = double = half = bfloat16 = type_as = to

    def _no_operator(self, *_: Any) -> NoReturn:
        refuse("an operator is outside the vocabulary of the kernels", "they take what is done element by element")

    __matmul__ = __rmatmul__ = __imatmul__ = __getitem__ = __setitem__ = __delitem__ = _no_operator
    __floordiv__ = __rfloordiv__ = __ifloordiv__ = __mod__ = __rmod__ = __imod__ = __invert__ = _no_operator
    __and__ = __rand__ = __iand__ = __or__ = __ror__ = __ior__ = __xor__ = __rxor__ = __ixor__ = _no_operator
    __lshift__ = __rlshift__ = __ilshift__ = __rshift__ = __rrshift__ = __irshift__ = __divmod__ = _no_operator

    def _look(self, *_: Any) -> NoReturn:
        refuse("the value of a tensor is looked at", "a rule may branch on numbers only")

    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __contains__ = item = tolist = _look

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        refuse(f"`{name}` is outside the vocabulary of the kernels", "they take what is done element by element")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.sqrt(x)` is `x.sqrt()`."""
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        name = getattr(func, "__name__", str(func))
        if func is torch.where:
            made = select(*args, **kwargs)
        elif args and args[0].__class__ in (Recorded, Mask):
            made = getattr(args[0], name)(*args[1:], **kwargs)
        elif name in _SYMMETRIC and len(args) == 2 and not kwargs:
            made = getattr(args[1], name)(args[0])
        else:
            refuse(f"`torch.{name}` is given a value in a place where the kernels take none", "write it as a method")
        return made if out is None else out.copy_(made)


class Dtype:
    """### The dtype of all values, which `to` takes and nobody may look at: a program is for every dtype"""

    def __eq__(self, *_: object) -> NoReturn:
        refuse("the dtype of a tensor is looked at", "a rule is read once for all dtypes")

    __ne__ = __hash__ = __eq__

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self.__eq__()


DTYPE = Dtype()

_SYMMETRIC = {"add", "mul", "multiply", "maximum", "minimum"}


class Mask:
    """
    ## What a comparison gives

    It chooses (`torch.where`), takes elements out (`value * mask`), and combines with others (`&`, `|`, `~`); `to`
    makes it a value of zeros and ones.
    """

    __slots__ = ("_tape", "id")
    __hash__ = object.__hash__

    def __init__(self, tape: Tape, id: int) -> None:
        self._tape = tape
        self.id = id

    def to(self, *_: Any, **__: Any) -> Recorded:
        return self._tape.make(("copy", self.id))

    float = double = half = bfloat16 = type_as = to

    def mul(self, other: Any) -> Recorded:
        if other.__class__ is not Recorded:
            _refuse_mask()
        product: Recorded = other.mul(self)
        return product

    __mul__ = __rmul__ = multiply = mul

    def logical_and(self, other: Any) -> Mask:
        return self._tape.compare(("and", self.id, _mask(other).id))

    def logical_or(self, other: Any) -> Mask:
        return self._tape.compare(("or", self.id, _mask(other).id))

    def logical_not(self) -> Mask:
        return self._tape.compare(("not", self.id))

    __and__ = __rand__ = logical_and
    __or__ = __ror__ = logical_or
    __invert__ = logical_not

    def _no(self, *_: Any, **__: Any) -> NoReturn:
        _refuse_mask()

    __add__ = __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _no
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __matmul__ = __getitem__ = __xor__ = __mod__ = _no
    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = item = Recorded._look

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        _refuse_mask()

    __torch_function__ = Recorded.__torch_function__


def _mask(value: Any) -> Mask:
    return value if isinstance(value, Mask) else _refuse_mask()


def _refuse_mask() -> NoReturn:
    refuse("a comparison is used as a number", "say mask.to(param.dtype), torch.where(mask, a, b), or value * mask")


def _is_short(number: Any) -> bool:
    """Whether a number is one in float32."""
    return isinstance(number, (int, float)) and ctypes.c_float(number).value == number


def select(condition: Any, one: Any, two: Any) -> Recorded:
    """`torch.where(condition, one, two)`"""
    if condition.__class__ not in (Mask, Recorded):
        refuse("`torch.where` chooses by something that is no comparison of values", "compare with <, >, lt, gt")
    if one.__class__ is not Recorded and two.__class__ is not Recorded and not (_is_short(one) and _is_short(two)):
        # torch makes a float32 tensor of two numbers, whatever it is then used with.
        refuse("`torch.where` chooses between two numbers", "say mask.to(param.dtype) and calculate")
    tape: Tape = condition._tape
    return tape.make(("where", condition.id, tape.operand(one), tape.operand(two)))
