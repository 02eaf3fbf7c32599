"""Code as HTML: coloured by Pygments, one element a line, identifiers linked."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from pygments import lex
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

#: From accessible-pygments; their contrast is at least 4.5 on their own ground.
STYLES = {"light": "a11y-high-contrast-light", "dark": "a11y-high-contrast-dark"}

#: The address for the identifier at a line (from 1) and column, or None.
Link = Callable[[int, int], str | None]


def highlight(text: str, language: str, link: Link = lambda line, column: None) -> list[str]:
    """The HTML of each line. Raises `pygments.util.ClassNotFound` for a language that it doesn't know."""
    lines: list[str] = []
    current: list[str] = []
    column = 0
    for kind, value in lex(text, get_lexer_by_name(language, stripnl=False, ensurenl=False)):
        for index, part in enumerate(value.split("\n")):
            if index:
                lines.append("".join(current))
                current, column = [], 0
            if part:
                current.append(_span(kind, part, link(len(lines) + 1, column)))
                column += len(part)
    if current:
        lines.append("".join(current))
    return lines


def _span(kind: Any, text: str, address: str | None) -> str:
    while kind not in STANDARD_TYPES:
        kind = kind.parent
    name = STANDARD_TYPES[kind]
    html = escape(text, quote=False)
    # Most of code is names and points, which have no colour of their own.
    if name not in ("", "n", "p", "w"):
        html = f'<span class="{name}">{html}</span>'
    return f'<a href="{escape(address)}">{html}</a>' if address else html


def block(text: str, language: str) -> str:
    """A block of code in a page of text. What is no code is not wrapped, because it may be a table."""
    lines = "\n".join(highlight(text.rstrip(), language))
    if language == "text":
        return f'<pre class="code output" role="group" aria-label="Output" tabindex="0"><code>{lines}</code></pre>\n'
    return f'<pre class="code"><code>{lines}</code></pre>\n'


def style_sheet() -> str:
    """The colours of both styles."""

    def rules(name: str, prefix: str) -> str:
        lines = HtmlFormatter(style=STYLES[name]).get_style_defs(f"{prefix} .code").splitlines()
        # The ground is the page's, and line numbers are ours.
        return "\n".join(line for line in lines if f"{prefix} .code ." in line and "linenos" not in line) + "\n"

    dark = rules("dark", ':root:not([data-theme="light"])')
    return (
        rules("light", ":root")
        + "@media (prefers-color-scheme: dark) {\n"
        + dark
        + "}\n"
        + rules("dark", ':root[data-theme="dark"]')
    )
