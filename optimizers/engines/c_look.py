r"""
---
title: Looking, in C
summary: A thousand gradients found and compared in a quarter of the time that Python takes.
---

# Looking, in C

Where there are many small tensors, to look at them takes Python a third of the time that the kernel takes to move them.
Most of that is the price of asking: for the gradient, its dtype, its strides, its address. Here the same questions are
asked in C, of all tensors in one call.

torch has C functions for programs that are compiled once and run with its later versions. They tell nearly everything
about a tensor. For its gradient, for what is negated or conjugated later, and to tell autograd of a change there are
functions of its C++ core, which are called by their names in the library. Nothing here knows how a tensor lies in
memory. Where an object of Python keeps its tensor is found out, by searching it for what `Tensor._cdata` says.

Before any of it counts, it is tried on a parameter whose answers are known. If they are wrong, or a function is
missing (as in torch before 2.9), Python [looks](look.html).
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from optimizers.engines import compiler
from optimizers.engines.compiler import NoCompiler
from optimizers.engines.state import CPU

SOURCE = r"""
#include <stdint.h>
#include <string.h>

typedef void *object;  /* of Python */
typedef void *handle;  /* where the pointer to a tensor is */

typedef struct {
    handle (*grad)(void *tensor);
    void (*bump_version)(handle);
    object (*item)(object dictionary, object key);
    int32_t (*is_defined)(handle, _Bool *);
    int32_t (*layout)(handle, int32_t *), (*dtype)(handle, int32_t *), (*device_type)(handle, int32_t *);
    int32_t (*dim)(handle, int64_t *), (*sizes)(handle, int64_t **), (*strides)(handle, int64_t **);
    int32_t (*data_ptr)(handle, int64_t *);
    _Bool (*is_neg)(handle), (*is_conj)(handle), (*is_inference)(handle);
} functions;

/* `facts` has a row for each parameter and its gradient in turns, then for the tensors of the states, entry by entry.
   The first `moved` entries are written by kernels; the others are counts. A parameter that has no gradient, and so
   doesn't step, has a negative number in `rows`. */
typedef struct {
    const functions *of_torch;
    int64_t tensors, entries, moved, width;
    handle *params, *kept;
    object *states, *names, *objects;
    int64_t *facts, *grads;
    const int32_t *rows;
} look;

enum { DATA, DTYPE, DEVICE, DIM, SIZES, DIMENSIONS = 16, MOST = SIZES + 2 * DIMENSIONS, AHEAD = 16 };

static int is_empty(const int64_t *row) {
    for (int64_t d = 0; d < row[DIM]; d++) if (row[SIZES + d] == 0) return 1;
    return 0;
}

static int is_defined(const look *l, handle tensor) {
    _Bool defined;
    return l->of_torch->is_defined(tensor, &defined) == 0 && defined;
}

static handle grad_of(const look *l, int64_t i) { return l->of_torch->grad(*(void **)l->params[i]); }

/* All that a kernel relies on. 0 if it could be found out, as of any tensor with memory of its own. */
static int find_facts(const look *l, handle tensor, int64_t *row) {
    const functions *of = l->of_torch;
    int32_t layout, dtype, device;
    int64_t *sizes, *strides;
    if (of->layout(tensor, &layout) || layout != 0 || of->is_neg(tensor) || of->is_conj(tensor)) return 1;
    /* It has no version that could be told to autograd. */
    if (of->is_inference(tensor)) return 1;
    if (of->dtype(tensor, &dtype) || of->device_type(tensor, &device) || of->dim(tensor, row + DIM)) return 1;
    if (row[DIM] > DIMENSIONS) return 1;
    if (of->sizes(tensor, &sizes) || of->strides(tensor, &strides) || of->data_ptr(tensor, row + DATA)) return 1;
    row[DTYPE] = dtype;
    row[DEVICE] = device;
    for (int64_t d = 0; d < row[DIM]; d++) {
        row[SIZES + d] = sizes[d];
        /* A dimension of 1 may have any stride. */
        row[SIZES + row[DIM] + d] = sizes[d] == 1 ? 0 : strides[d];
    }
    return row[DATA] == 0 && !is_empty(row);
}

/* 0 if the facts are those that were noted, from one on. */
static int differs(const look *l, handle tensor, const int64_t *known, int64_t from, int64_t *address) {
    int64_t row[MOST];
    if (find_facts(l, tensor, row) || row[DIM] != known[DIM]) return 1;
    *address = row[DATA];
    return memcmp(row + from, known + from, 8 * (SIZES + 2 * row[DIM] - from)) != 0;
}

/* 0 if a parameter and its gradient are as they were noted; then the address of the gradient is put in its place. */
static int pair_differs(const look *l, int64_t i, handle grad) {
    int64_t *known = l->facts + 2 * l->width * i, address;
    return differs(l, l->params[i], known, DATA, &address)
        || differs(l, grad, known + l->width, DTYPE, l->grads + i);
}

static int note_facts(const look *l, handle tensor, int64_t *known) {
    int64_t row[MOST];
    if (find_facts(l, tensor, row) || SIZES + 2 * row[DIM] > l->width) return 1;
    memcpy(known, row, 8 * (SIZES + 2 * row[DIM]));
    return 0;
}

/* Note the facts of now. 0 if all could be found out. A gradient that is missing will be as its parameter. */
int note(const look *l) {
    int64_t *known = l->facts;
    for (int64_t i = 0; i < l->tensors; i++, known += 2 * l->width) {
        handle grad = grad_of(l, i);
        if (note_facts(l, l->params[i], known)) return 1;
        if (note_facts(l, is_defined(l, grad) ? grad : l->params[i], known + l->width)) return 1;
    }
    for (int64_t k = 0; k < l->entries * l->tensors; k++, known += l->width)
        if (note_facts(l, l->kept[k], known)) return 1;
    return 0;
}

static void come(const char *object) {
    for (int line = 0; line < 3; line++) __builtin_prefetch(object + 64 * line);
}

/* 0 if the same parameters as before have gradients, and all are as they were noted. */
int gradients_changed(const look *l) {
    handle grads[AHEAD];
    for (int64_t begin = 0; begin < l->tensors; begin += AHEAD) {
        /* The kernel has pushed most of this out of the caches, so let some come at a time. */
        int64_t end = begin + AHEAD < l->tensors ? begin + AHEAD : l->tensors;
        for (int64_t i = begin; i < end; i++) come(*(void **)l->params[i]);
        for (int64_t i = begin; i < end; i++) come(*(void **)(grads[i - begin] = grad_of(l, i)));
        for (int64_t i = begin; i < end; i++) {
            int steps = is_defined(l, grads[i - begin]);
            if (steps != (l->rows[i] >= 0) || (steps && pair_differs(l, i, grads[i - begin]))) return 1;
        }
    }
    return 0;
}

/* Find out which parameters have gradients now, and what all counts are. 0 if nothing else has changed. */
int find_present(const look *l, int8_t *present, float *counts) {
    for (int64_t i = 0; i < l->tensors; i++) {
        handle grad = grad_of(l, i);
        present[i] = is_defined(l, grad);
        if (present[i] && pair_differs(l, i, grad)) return 1;
    }
    const int64_t *row = l->facts + (2 + l->moved) * l->width * l->tensors;
    for (int64_t k = 0; k < (l->entries - l->moved) * l->tensors; k++, row += l->width) counts[k] = *(float *)row[DATA];
    return 0;
}

/* 0 if the states have the same tensors as before, and they lie where they lay. */
int states_changed(const look *l) {
    int64_t *known = l->facts + 2 * l->width * l->tensors, address;
    for (int64_t k = 0; k < l->entries; k++)
        for (int64_t i = 0; i < l->tensors; i++, known += l->width) {
            int64_t at = k * l->tensors + i;
            if (l->of_torch->item(l->states[i], l->names[k]) != l->objects[at]) return 1;
            if (differs(l, l->kept[at], known, DATA, &address)) return 1;
        }
    return 0;
}

/* Whether some parameter has a gradient. */
int is_some_defined(const look *l) {
    for (int64_t i = 0; i < l->tensors; i++) if (is_defined(l, grad_of(l, i))) return 1;
    return 0;
}

/* Tell autograd what is written. */
static int bump_versions(const look *l, const handle *tensors) {
    for (int64_t i = 0; i < l->tensors; i++)
        if (l->rows[i] >= 0) l->of_torch->bump_version(tensors[i]);
    return 0;
}

int mark(const look *l) { return bump_versions(l, l->params); }

int mark_states(const look *l) {
    for (int64_t k = 0; k < l->moved; k++) bump_versions(l, l->kept + k * l->tensors);
    return 0;
}
"""

#: Where a row of facts has the sizes.
SIZES = 4

#: So few parameters Python asks faster.
FEW = 4

#: What is asked of a tensor: `functions` in the source, by their names in torch's libraries.
NAMES = (
    "_ZNK3c1010TensorImpl4gradEv",
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "PyDict_GetItemWithError",
    "aoti_torch_is_defined",
    *(f"aoti_torch_get_{what}" for what in ("layout", "dtype", "device_type", "dim", "sizes", "strides", "data_ptr")),
    "_ZN2at6native6is_negERKNS_6TensorE",
    "_ZN2at6native7is_conjERKNS_6TensorE",
    "_ZN2at6native12is_inferenceERKNS_6TensorE",
)


class Arguments(ctypes.Structure):
    """The argument of the C functions, `look` in the source."""

    _fields_ = (
        ("functions", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tensors", "entries", "moved", "width")),
        *((name, ctypes.c_void_p) for name in ("params", "kept", "states", "names", "objects")),
        *((name, ctypes.c_void_p) for name in ("facts", "grads", "rows")),
    )


@cache
def of_torch() -> tuple[array[int], int]:
    """
    ## What is called in torch: the addresses, and where in Python's object the pointer to its tensor is

    Raises `NoCompiler` where something is missing.
    """
    try:
        library = ctypes.CDLL(torch._C.__file__)
        found = [getattr(ctypes.pythonapi if name.startswith("Py") else library, name) for name in NAMES]
    except (OSError, AttributeError) as error:
        raise NoCompiler(f"torch {torch.__version__} lacks a function: {error}") from None
    with _disable_current_modes():
        tensor = torch.empty(0, device=CPU)
    words = range(0, Tensor.__basicsize__ - 7, 8)
    offsets = [word for word in words if ctypes.c_uint64.from_address(id(tensor) + word).value == tensor._cdata]
    if len(offsets) != 1:
        raise NoCompiler(f"where objects keep the tensors of torch {torch.__version__} could not be found out")
    return array("Q", [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found]), offsets[0]


class Questions:
    """
    ## The C functions, tried

    Raises `NoCompiler` where they say other than is true.
    """

    def __init__(self, library: Any) -> None:
        # Python's objects are asked, so its lock must be held.
        held = ctypes.PyDLL(library._name, handle=library._handle)
        self.note, self.mark, self.mark_states = held.note, held.mark, held.mark_states
        self.gradients_changed, self.states_changed = held.gradients_changed, held.states_changed
        self.find_present, self.is_some_defined = held.find_present, held.is_some_defined
        for function in (self.note, self.mark, self.mark_states, self.gradients_changed, self.states_changed):
            function.argtypes = (ctypes.c_void_p,)
        self.is_some_defined.argtypes, self.find_present.argtypes = (ctypes.c_void_p,), (ctypes.c_void_p,) * 3
        self.table, self.offset = of_torch()
        try:
            # Whatever mode somebody is in, of fake tensors say, this is tried on real ones.
            with _disable_current_modes(), torch.inference_mode(False), CPU:
                right = self._is_right()
        except Exception as error:
            raise NoCompiler(f"looking in C could not be tried: {error}") from error
        if not right:
            raise NoCompiler("looking in C gives other answers than torch does")

    def handle(self, tensor: Tensor) -> int:
        """Where the object keeps the pointer to its tensor."""
        return id(tensor) + self.offset

    def _is_right(self) -> bool:
        param, state, table = torch.zeros(3, 2).t().requires_grad_(), {"m": torch.zeros(2, 3)}, array("Q", [0, 0])
        param.grad = torch.zeros_like(param)
        versions = param._version, state["m"]._version
        look = CLook([param], [state], ("m",), (), table, array("i", [0]), self)
        look.mark()
        look.mark_states()
        same = [not look.gradients_changed(), not look.states_changed(), table[1] == param.grad.data_ptr()]
        same += [param._version == versions[0] + 1, state["m"]._version == versions[1] + 1]
        present = [list(found[0]) if (found := look.find_present()) else None]
        changed = []
        others = (torch.zeros(2, 3), torch.zeros_like(param)._neg_view(), torch.zeros(2, 3).to_sparse(), None)
        for param.grad in others:
            changed.append(look.gradients_changed())
        present += [list(found[0]) if (found := look.find_present()) else None]
        state["m"] = torch.zeros(2, 3)
        return all([*same, *changed, look.states_changed(), present == [[1], [0]]])


def questions() -> Questions:
    """The C functions. Raises `NoCompiler`"""
    of_torch()
    return compiler.load_as(SOURCE, Questions)


class CLook:
    """
    ## A look at parameters, gradients and states

    It has what [the look by Python](look.html) has. Raises `NoCompiler` where something can't be looked at from C.
    """

    gradients_changed: Callable[[], Any]
    states_changed: Callable[[], Any]
    mark: Callable[[], Any]
    mark_states: Callable[[], Any]

    def __init__(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        names: tuple[str, ...],
        counts: tuple[str, ...],
        table: array[int],
        rows: array[int],
        functions: Questions | None = None,
    ) -> None:
        functions = functions or questions()
        entries = (*names, *counts)
        kept = [state[name] for name in entries for state in states]
        if any(type(state) is not dict for state in states):
            raise NoCompiler("a state is not a dictionary")
        width = SIZES + 2 * max(t.dim() for t in (*params, *kept))
        places = (
            array("Q", map(functions.handle, params)),
            array("Q", map(functions.handle, kept)),
            *(array("Q", map(id, objects)) for objects in (states, entries, kept)),
            array("q", bytes(8 * width * (2 * len(params) + len(kept)))),
        )
        # What the arrays point to must not go away.
        self._held = (params, states, entries, kept, places, functions, table, rows)
        calls, first, *addresses = (numbers.buffer_info()[0] for numbers in (functions.table, table, *places, rows))
        addresses.insert(-1, first + 8 * len(params))
        self._look = Arguments(calls, len(params), len(entries), len(names), width, *addresses)
        self._counted = len(counts) * len(params)
        at = ctypes.addressof(self._look)
        if functions.note(at):
            raise NoCompiler(
                "a tensor was made in inference mode, or something else about it can't be found out from C"
            )
        # They are called at every step, so without a method between.
        self.gradients_changed = partial(functions.gradients_changed, at)
        self.states_changed = partial(functions.states_changed, at)
        self.mark, self.mark_states = partial(functions.mark, at), partial(functions.mark_states, at)
        self._find_present = partial(functions.find_present, at)

    def find_present(self) -> tuple[array[int], array[float]] | None:
        """
        ### Which parameters have gradients now, and what the counts are, entry by entry; None if more has changed
        """
        present, counts = array("b", bytes(self._look.tensors)), array("f", bytes(4 * self._counted))
        changed = self._find_present(present.buffer_info()[0], counts.buffer_info()[0])
        return None if changed else (present, counts)


def gradient_finder(params: list[Tensor], from_c: bool) -> Callable[[], Any]:
    """
    ## What tells whether any of these parameters has a gradient

    For those that have none at the moment, which may be a whole network that is frozen.
    """
    if from_c and len(params) >= FEW:
        with suppress(NoCompiler):
            functions = questions()
            handles = array("Q", map(functions.handle, params))
            look = Arguments(functions.table.buffer_info()[0], len(params), params=handles.buffer_info()[0])
            at, held = ctypes.addressof(look), (look, handles, params)
            return lambda: held and functions.is_some_defined(at)
    return lambda: any(p.grad is not None for p in params)
