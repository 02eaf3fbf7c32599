r"""
---
title: The console
summary: labml's monitor and tracker, readable where the output is a file.
---

# The console

[labml](https://github.com/labmlai/labml) shows progress on one line that it writes again and again: it returns the
carriage, wipes the line and colours the words. On a terminal that is what one wants. In a file it is noise.

A terminal shows of such a line what was written after the last carriage return. So that is what `PlainText` passes
on, less the colours, when the line ends. `tracker.new_line()` ends it, at about ten epochs of a run.

Nothing is sent anywhere and nothing is written to disk: labml does both only inside an `experiment`, and there
is none here.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import TextIO

try:
    from labml import tracker
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "The experiments show their progress with labml, which is not installed. "
        "Run: pip install 'literate-optimizers[experiments]'",
        name=missing.name,
    ) from missing

_COLOUR = re.compile("\x1b\\[[0-9;]*m")

#: How many lines of progress a run leaves behind.
LINES = 10


class PlainText(io.TextIOBase):
    """## A stream that passes on what a terminal would show in the end, line by line"""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._line = ""

    def write(self, text: str) -> int:
        """### Keep the unfinished line; pass the finished ones on"""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._target.write(_as_shown(line) + "\n")
        return len(text)

    def flush(self) -> None:
        """### An unfinished line stays here: it may still be wiped"""
        self._target.flush()

    def finish(self) -> None:
        """### The last line may have no end"""
        if self._line:
            self.write("\n")
        self.flush()


def _as_shown(line: str) -> str:
    # A return right before the end wipes nothing.
    return _COLOUR.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip()


@contextlib.contextmanager
def readable_output() -> Iterator[None]:
    """## labml's output as it is on a terminal, and as plain lines elsewhere"""
    _wake_labml()
    if sys.stdout.isatty():
        yield
        return
    plain = PlainText(sys.stdout)
    try:
        with contextlib.redirect_stdout(plain):
            yield
    finally:
        plain.finish()


def is_shown(epoch: int, epochs: int) -> bool:
    """## Whether the line of this epoch stays: the first, the last, and some evenly between"""
    every = -(-epochs // LINES)
    return epoch in (1, epochs) or (epoch % every == 0 and epochs - epoch >= every / 2)


def _wake_labml() -> None:
    """
    ### Start labml quietly, with no indicators of an earlier run

    When first used it warns that there is no `.labml.yaml`, which experiments need and this doesn't. (Its own
    `tracker.reset()` raises KeyError at the second call in 0.5.3.)
    """
    with contextlib.redirect_stdout(io.StringIO()):
        tracker._internal().indicators.clear()
