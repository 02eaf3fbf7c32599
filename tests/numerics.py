"""
How far each reader is from the formula: `python -m tests.numerics` measures it and writes `docs/numerics.md`.

A distance is the largest over 100 steps and all elements, against the formulas of `tests/reference.py` in float64 from
the same numbers, in ULP of the largest number that the tensor held on the way.
"""

from pathlib import Path

import torch

from tests import helpers
from tests.rules import READERS, RULES, Rule

PAGE = Path(__file__).parents[1] / "docs" / "numerics.md"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS = 100
SHAPES = [(64, 33), (7,)]

HEAD = """\
# Numerics

How far each reader is from the formulas of the papers. Every rule and option of `tests/rules.py` takes {steps} steps
from the same numbers as its formula in float64 (`tests/reference.py`). The distance is the largest over all steps and
elements, in ULP of the largest number that the tensor held on the way: 1 ULP is 2⁻⁵² of it in float64, 2⁻²³ in float32,
2⁻⁷ in bfloat16 and 2⁻¹⁰ in float16.

- `single` and `foreach` give the same bits as each other, and as torch's for-loop wherever torch has the rule.
- `fused` has the same operations and roundings, with two exceptions: it divides by a number by multiplying with its
  reciprocal, and its square root is correctly rounded, which torch's is not.
- On a GPU `fused` is a Triton kernel of the same operations. The tests hold it to the same bounds, in Triton's
  interpreter where there is no GPU.
- Parameters in bfloat16 and float16 are computed in float32, and rounded when they are stored. Their states are
  stored in the same dtype, as in torch, and that is where most of the distance comes from: the moving averages of an
  8-bit number forget what is much smaller than themselves.
- A rule that multiplies matrices does so in bfloat16, whatever the dtype, so its distance is of that size everywhere:
  in float64 it is large in ULP, and small in its movement. No kernel takes such a rule.

Each cell has the largest distance measured and, in brackets, the bound that the tests assert: twice the distance,
rounded up, because another processor may round elsewhere. This page is written by `python -m tests.numerics`.

"""


def distance(rule: Rule, reader: str, dtype: torch.dtype) -> float:
    """The largest distance of a reader from the formula, in ULP."""
    ps = helpers.params_for(rule, SHAPES, dtype)
    rows = helpers.gradients(ps, STEPS)
    paths = [
        rule.reference(p.detach().double().numpy(), [row[i].double().numpy() for row in rows]) for i, p in enumerate(ps)
    ]
    optimizer, worst = rule.build(ps, reader), 0.0
    largest = [max(abs(theta).max() for theta in path) for path in paths]
    for number, row in enumerate(rows):
        helpers.step(optimizer, ps, row)
        for p, path, size in zip(ps, paths, largest, strict=True):
            apart = abs(p.detach().double().numpy() - path[number]).max()
            worst = max(worst, float(apart / size / torch.finfo(dtype).eps))
    return worst


def bound(measured: float) -> int:
    """What the tests assert, for a distance that was measured."""
    return max(1, int(-(-2 * measured // 1)))


def cell(measured: float) -> str:
    """A distance and its bound."""
    if measured < 1e6:
        return f"{measured:.1f} ({bound(measured)})"
    return f"{measured:.2e} ({bound(measured):.2e})"


def page() -> str:
    """The page, measured now."""
    lines = [HEAD.format(steps=STEPS)]
    for name, dtype in DTYPES.items():
        lines += [f"## {name}\n", f"| rule | {' | '.join(READERS)} |", "|---" * (len(READERS) + 1) + "|"]
        for rule in RULES:
            cells = [cell(distance(rule, reader, dtype)) if reader in rule.readers else "-" for reader in READERS]
            lines.append(f"| {rule.name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def published() -> dict[tuple[str, str, str], float]:
    """The bounds of the page, by rule, reader and dtype."""
    bounds, dtype = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            dtype = line.removeprefix("## ").strip()
        elif line.startswith("| ") and "(" in line:
            rule, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for reader, shown in zip(READERS, cells, strict=True):
                if shown != "-":
                    bounds[rule, reader, dtype] = float(shown.split("(")[1].rstrip(")"))
    return bounds


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
