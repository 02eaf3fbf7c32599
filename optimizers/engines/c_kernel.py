r"""
---
title: The C back end
summary: A program printed as C - one loop over all elements of all tensors.
---

# The C back end

A program is a list of operations on numbered values. Printed as C, each operation is one line, and the whole is the
body of one loop: every element is read once, moved, and written once. So the time of a step is the time to stream the
tensors through the processor, and nothing is allocated.

The formulas are those of torch's own operators, rounding included, with one exception: division by a number is
multiplication by its reciprocal, which is several times faster and may differ in the last bit. Numbers come as
float64 and are rounded once. No operation is contracted or reordered by the compiler, so that an element gets the
same bits wherever it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimizers.engines.printing import Language, loaded, value_name, variable, written
from optimizers.engines.program import Program

#: How an element of each dtype is kept in memory.
STORAGE = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}

FORMULAS = {
    "copy": "{0}",
    "set": "{1}",
    "add": "{0} + {1}",
    "add_scaled": "FMA({2}, {1}, {0})",
    "sub": "{0} - {1}",
    "sub_scaled": "FMA(-{2}, {1}, {0})",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "div_number": "{0} * {1}",
    "exact_div": "{0} / {1}",
    "pow": "POW({0}, {1})",
    "maximum": "LARGEST({0}, {1})",
    "minimum": "SMALLEST({0}, {1})",
    "addcmul": "FMA({1}, {2}, {0})",
    "addcmul_scaled": "FMA({3} * {1}, {2}, {0})",
    "addcdiv": "{0} + {1} / {2}",
    "addcdiv_scaled": "{0} + {3} * {1} / {2}",
    "lerp": "LERP({0}, {1}, {2})",
    "clamp": "SMALLER(LARGER({0}, {1}), {2})",
    "clamp_tensors": "SMALLEST(LARGEST({0}, {1}), {2})",
    "clamp_min": "LARGER({0}, {1})",
    "clamp_max": "SMALLER({0}, {1})",
    "sqrt": "SQRT({0})",
    "rsqrt": "1 / SQRT({0})",
    "reciprocal": "1 / {0}",
    "square": "{0} * {0}",
    "abs": "ABS({0})",
    "sign": "(real)(({0} > 0) - ({0} < 0))",
    "neg": "-{0}",
    "exp": "EXP({0})",
    "log": "LOG({0})",
    "tanh": "TANH({0})",
    "lt": "(real)({0} < {1})",
    "le": "(real)({0} <= {1})",
    "gt": "(real)({0} > {1})",
    "ge": "(real)({0} >= {1})",
    "eq": "(real)({0} == {1})",
    "ne": "(real)({0} != {1})",
    "and": "(real)({0} != 0 && {1} != 0)",
    "or": "(real)({0} != 0 || {1} != 0)",
    "not": "(real)({0} == 0)",
    "where": "({0} != 0) ? {1} : {2}",
}

C = Language(
    name="C",
    formulas=FORMULAS,
    number="const real s{0} = (real)(scalars[{0}]);",
    reciprocal="const real s{0} = (real)(1 / scalars[{0}]);",
    value="const real {0} = {1};",
    comment="/* {} */",
    escapes=("*/", "* /"),
)

_PROLOGUE = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef {real} real;
#define SQRT sqrt{f}
#define ABS fabs{f}
#define EXP exp{f}
#define LOG log{f}
#define TANH tanh{f}
#define POW pow{f}
#ifdef FP_FAST_FMA{F}
#define FMA fma{f}
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#define LARGEST(a, b) (((a) > (b) || (a) != (a)) ? (a) : (b))
#define SMALLEST(a, b) (((a) < (b) || (a) != (a)) ? (a) : (b))
#define LARGER(a, b) (((b) != (b) && (a) == (a)) ? (b) : (a) < (b) ? (b) : (a))
#define SMALLER(a, b) (((b) != (b) && (a) == (a)) ? (b) : (a) > (b) ? (b) : (a))
#define LERP(a, b, w) ((ABS(w) < (real)0.5) ? FMA(w, (b) - (a), a) : FMA((w) - 1, (b) - (a), b))
"""

_BFLOAT16 = """
typedef uint16_t bfloat16;
static inline float load_bfloat16(bfloat16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline bfloat16 store_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bfloat16)(value != value ? 0x7fc0 : rounded);
}
"""

_FLOAT16 = """
typedef _Float16 float16;
static inline float load_float16(float16 half) { return (float)half; }
static inline float16 store_float16(float value) { return (float16)value; }
"""

# The launch is laid out by `Launch`. `tables[slot * stride + i]` is the address of tensor i in a slot,
# `offsets` are the sums of the sizes. Threads share the elements of all tensors evenly, whatever the sizes.
# A tensor that doesn't step has the size 0 and the row -1.
_LAUNCH = """
typedef struct {
    int64_t tensors, stride, cohorts, numbers, counts, threads;
    void **tables;
    const int64_t *offsets;
    const int32_t *rows;
    const double *scalars;
    float **cells;
    double *before;
    const double *after;
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread)(void), (*team)(void);
} launch;
"""

_SHARE = """
static void share(const launch *l, int64_t begin, int64_t end) {
    int64_t low = 0, high = l->tensors - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (l->offsets[middle] <= begin) low = middle; else high = middle - 1;
    }
    for (int64_t i = low; i < l->tensors && l->offsets[i] < end; i++) {
        int64_t from = begin > l->offsets[i] ? begin - l->offsets[i] : 0;
        int64_t to = (end < l->offsets[i + 1] ? end : l->offsets[i + 1]) - l->offsets[i];
        if (to > from) update(POINTERS, from, to, l->scalars + l->numbers * l->rows[i]);
    }
}

static void work(void *argument) {
    const launch *l = argument;
    int64_t all = l->offsets[l->tensors], team = l->team(), thread = l->thread();
    int64_t part = ((all + team - 1) / team + 63) / 64 * 64, begin = thread * part;
    if (begin < all) share(l, begin, begin + part < all ? begin + part : all);
}

static void move(const launch *l) {
    if (l->threads > 1) l->parallel(work, (void *)l, (unsigned)l->threads, 0);
    else share(l, 0, l->offsets[l->tensors]);
}
"""

# The counts of the steps are in the memory of the host, also where the kernel is one for a GPU.
_COUNTS = """
/* NaN is what it is. */
static int differ(float one, float two) { return one != two && (one == one || two == two); }

/* 0 if every count is what the caller takes it for. */
int check(const launch *l) {
    for (int64_t c = 0; c < l->counts; c++)
        for (int64_t i = 0; i < l->tensors; i++)
            if (l->rows[i] >= 0
                && differ(*l->cells[c * l->stride + i], (float)l->before[c + l->counts * l->rows[i]])) return 1;
    return 0;
}

int step(const launch *l) {
    move(l);
    for (int64_t c = 0; c < l->counts; c++)
        for (int64_t i = 0; i < l->tensors; i++)
            if (l->rows[i] >= 0) *l->cells[c * l->stride + i] = (float)l->after[c + l->counts * l->rows[i]];
    for (int64_t k = 0; k < l->counts * l->cohorts; k++) l->before[k] = l->after[k];
    return 0;
}
"""

#: A kernel that counts the steps, and leaves the tensors to another.
COUNTER = f"#include <stdint.h>\n{_LAUNCH}\nstatic void move(const launch *l) {{ (void)l; }}\n{_COUNTS}"


def c_source(title: str, program: Program, real: torch.dtype, slots: Sequence[torch.dtype]) -> str:
    """
    ## The C source of a program

    `real` is the dtype of the arithmetic. `slots` are the dtypes in memory of the leaves and then of the new state.
    """
    names = [*program.leaves, *program.new_state]
    heading = f"{title}: {len(program.steps)} operations on {', '.join(names)}"
    parts = [f"{C.remark(heading)}\n", prologue(real)]
    parts.extend(text for dtype, text in ((torch.bfloat16, _BFLOAT16), (torch.float16, _FLOAT16)) if dtype in slots)
    parts.append(_update(program, [variable(name, slot) for slot, name in enumerate(names)], slots))
    addresses = ", ".join(f"l->tables[{slot} * l->stride + i]" for slot in range(len(names)))
    parts += [_LAUNCH, _SHARE.replace("POINTERS", addresses), _COUNTS]
    return "".join(parts)


def prologue(real: torch.dtype) -> str:
    """What the formulas are made of, for a dtype of the arithmetic."""
    suffix = "f" if real == torch.float32 else ""
    return _PROLOGUE.replace("{real}", STORAGE[real]).replace("{f}", suffix).replace("{F}", suffix.upper())


def _update(program: Program, names: list[str], slots: Sequence[torch.dtype]) -> str:
    """### The loop: load, the operations, store"""
    stored = written(program)
    arguments = ", ".join(
        f"{'' if slot in stored else 'const '}{STORAGE[dtype]} *restrict {name}_at"
        for slot, (name, dtype) in enumerate(zip(names, slots, strict=True))
    )
    numbers, body = C.body(program, names)
    loads = [f"const real {names[s]} = {_load(slots[s])}({names[s]}_at[i]);" for s in loaded(program)]
    stores = [
        f"{names[s]}_at[i] = {_store(slots[s])}({value_name(program, names, stored[s])});" for s in sorted(stored)
    ]
    function = [
        f"static void update({arguments}, int64_t from, int64_t to, const double *scalars) {{",
        *(f"    {line}" for line in numbers),
        "    for (int64_t i = from; i < to; i++) {",
        *(f"        {line}" for line in (*loads, *body, *stores)),
        "    }",
        "}",
    ]
    return "\n".join(["", *function, ""])


def _load(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "load_bfloat16", torch.float16: "load_float16"}.get(dtype, "")


def _store(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "store_bfloat16", torch.float16: "store_float16"}.get(dtype, "")
