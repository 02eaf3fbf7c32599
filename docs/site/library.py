"""
What the library itself has to show: pictures of real runs, equations as executed, kernels, and the playground's rules.

That takes seconds, where the rest of a build takes less. So it is done by another process meanwhile, and kept in a
file until a source changes. The process answers question by question, so that what is told is put in the pages while
the next is found out. An answer is a line of JSON: text, not code.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docs.site.maths import DOCS

CACHE = DOCS / "_cache"

#: Where the sources lie that the result depends on.
_SOURCES = ("optimizers", "docs/pictures", "docs/site")
_DEPENDENCIES = ("torch", "sympy", "numpy", "scikit-learn", "contourpy")

#: Who is asked.
_COMMAND = [sys.executable, "-m", "docs.site.library"]


class Library:
    """Asks at once, and waits where an answer is needed."""

    def __init__(self) -> None:
        answers = _answers(_file())
        listener = ThreadPoolExecutor(1)
        self._answers = {question: listener.submit(next, answers) for question in QUESTIONS}
        # What follows the last answer: all of them are kept, even where the build has failed meanwhile.
        listener.submit(list, answers)

    def answer(self, question: str) -> Any:
        """What the library says to one of the `QUESTIONS`. Raises RuntimeError with what went wrong there."""
        return self._answers[question].result()


def _file() -> Path:
    """Where the answers to the sources of now are kept."""
    root, found = DOCS.parent, hashlib.sha256()
    found.update(repr([platform.python_version(), *map(version, _DEPENDENCIES)]).encode())
    for folder in _SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            content = file.read_bytes()
            found.update(f"{file.relative_to(root)} {len(content)}\n".encode() + content)
    return CACHE / f"{found.hexdigest()[:16]}.json"


def _answers(file: Path) -> Iterator[Any]:
    """The answers one by one, from the file or else from the process, which are then kept in the file."""
    if file.exists():
        with file.open(encoding="utf-8") as kept:
            yield from map(json.loads, kept)
        return
    told = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        with subprocess.Popen(
            _COMMAND, cwd=DOCS.parent, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        ) as process:
            assert process.stdout is not None
            # The end of a line is missing where the process was killed.
            while (line := process.stdout.readline()).endswith("\n"):
                told.append(line)
                yield json.loads(line)
        if process.returncode:
            errors.seek(0)
            what = "the library could not be asked for its pictures, equations and kernels"
            raise RuntimeError(f"{what}:\n{errors.read()}")
    # Where a source changed meanwhile, nobody knows which version of it was asked.
    if file == _file():
        _keep(file, "".join(told))


def _keep(file: Path, text: str) -> None:
    """Write a file at once, and let go of older ones."""
    CACHE.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=CACHE, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as part:
        part.write(text)
    Path(name).replace(file)
    for old in CACHE.glob("*.json"):
        if old != file:
            old.unlink(missing_ok=True)


def _pictures() -> Any:
    """Pictures that a page names, by the name of a file."""
    from docs.pictures import pictures

    return {name: asdict(picture) for name, picture in pictures().items()}


def _rule_pictures() -> Any:
    """The pictures of each rule, by the name of its page."""
    from docs.pictures import rule_pictures

    return {page: [asdict(picture) for picture in some] for page, some in rule_pictures().items()}


def _rules() -> Any:
    """What the engines made of each rule, by the name of its page."""
    from docs.site.rules import exhibits

    return {page: asdict(exhibit) for page, exhibit in exhibits().items()}


def _playground() -> Any:
    """The rules of the playground, as a script."""
    from docs.site.playground import source

    return source()


#: What the library is asked, in this order. The last answer is the one that is taken as it is.
QUESTIONS: dict[str, Callable[[], Any]] = {
    "pictures": _pictures,
    "rule_pictures": _rule_pictures,
    "rules": _rules,
    "playground": _playground,
}


if __name__ == "__main__":
    # The process is short, and most of what it makes lives until its end: looking for garbage took half of the time.
    gc.disable()
    from torch.optim import Optimizer

    # The first call of this method imports torch's compiler, to keep it out of here. That takes most of a second.
    Optimizer.add_param_group = inspect.unwrap(Optimizer.add_param_group)  # type: ignore[method-assign]
    for ask in QUESTIONS.values():
        print(json.dumps(ask(), ensure_ascii=False), flush=True)
