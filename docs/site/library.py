"""
What the library itself has to show: pictures of real runs, equations as executed, kernels, and the playground's rules.

That takes seconds, where the rest of a build takes less. So it is done by another process meanwhile, and kept in a
file until a source changes. The file is JSON: text, not code.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docs.site.maths import DOCS

CACHE = DOCS / "_cache"

#: Where the sources lie that the result depends on.
_SOURCES = ("optimizers", "docs/pictures", "docs/site")
_DEPENDENCIES = ("torch", "sympy", "numpy", "scikit-learn", "contourpy")


class Library:
    """Asks at once, and waits where the answer is needed."""

    def __init__(self) -> None:
        self._file = CACHE / f"{_key()}.json"
        self._answer: dict[str, Any] | None = None
        self._process: subprocess.Popen[str] | None = None
        if not self._file.exists():
            command = [sys.executable, "-m", "docs.site.library"]
            self._process = subprocess.Popen(
                command, cwd=DOCS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
            )

    @property
    def answer(self) -> dict[str, Any]:
        """What `gather` found. Raises RuntimeError with what went wrong there."""
        if self._answer is None:
            self._answer = self._wait() if self._process else json.loads(self._file.read_text(encoding="utf-8"))
        return self._answer

    def _wait(self) -> dict[str, Any]:
        assert self._process is not None
        written, errors = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the library could not be asked for its pictures, equations and kernels:\n{errors}")
        answer: dict[str, Any] = json.loads(written)
        _keep(self._file, written)
        return answer


def _key() -> str:
    root, found = DOCS.parent, hashlib.sha256()
    found.update(repr([platform.python_version(), *map(version, _DEPENDENCIES)]).encode())
    for folder in _SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            content = file.read_bytes()
            found.update(f"{file.relative_to(root)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


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


def gather() -> dict[str, Any]:
    """Ask the library. By the name of a page: pictures, equations, kernels; and what belongs to no page."""
    from docs.pictures import pictures, rule_pictures
    from docs.site import playground, rules

    return {
        "pictures": {name: asdict(picture) for name, picture in pictures().items()},
        "rule_pictures": {page: [asdict(picture) for picture in some] for page, some in rule_pictures().items()},
        "rules": {page: asdict(exhibit) for page, exhibit in rules.exhibits().items()},
        "playground": playground.source(),
    }


if __name__ == "__main__":
    # The process is short, and most of what it makes lives until its end: looking for garbage took half of the time.
    gc.disable()
    json.dump(gather(), sys.stdout, ensure_ascii=False)
