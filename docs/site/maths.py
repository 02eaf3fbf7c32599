"""Formulas, by KaTeX: all of the site in one call."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from docs.site.source import SiteError

DOCS = Path(__file__).parent.parent
KATEX = DOCS / "node_modules" / "katex"


@dataclass(frozen=True)
class Place:
    """Where a formula stands."""

    path: Path | str
    line: int


class Maths:
    """Formulas are asked for while pages are rendered, and put in at the end."""

    def __init__(self) -> None:
        self._formulas: dict[tuple[str, bool], tuple[int, Place]] = {}
        self._html: list[str] = []

    def ask(self, formula: str, display: bool, place: Place) -> str:
        """A mark that `put_in` replaces by the formula's HTML."""
        number, _ = self._formulas.setdefault((formula.strip(), display), (len(self._formulas), place))
        return f"\x02{number}\x03"

    def render(self) -> None:
        """Raises `SiteError` for a formula that KaTeX refuses, and RuntimeError without Node or KaTeX."""
        if not KATEX.is_dir():
            raise RuntimeError("KaTeX is not installed: run `npm ci --prefix docs` first")
        asked = json.dumps(list(self._formulas))
        try:
            done = subprocess.run(
                ["node", str(Path(__file__).parent / "katex.mjs")], input=asked, capture_output=True, encoding="utf-8"
            )
        except FileNotFoundError as error:
            raise RuntimeError("Formulas are rendered by Node.js, which is not on PATH: install it first") from error
        if done.returncode:
            raise RuntimeError(f"Node.js could not render the formulas:\n{done.stderr}")
        for ((formula, _), (_, place)), html in zip(self._formulas.items(), json.loads(done.stdout), strict=True):
            if isinstance(html, dict):
                raise SiteError(place.path, place.line, f"{html['error']}\nin the formula: {formula}")
            self._html.append(html)

    def put_in(self, page: str) -> str:
        """Replace the marks in a page."""
        return re.sub("\x02(\\d+)\x03", lambda mark: self._html[int(mark[1])], page)
