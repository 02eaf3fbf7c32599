"""Notes as HTML: Markdown with formulas, links that are checked, pictures that are drawn by the library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.util import ClassNotFound

from docs.site import code
from docs.site.maths import Maths, Place
from docs.site.source import SiteError, slug

#: What an address in the text, or the name of a picture, becomes, given the place; raises `SiteError` for a dead one.
Resolve = Callable[[str, Place], str]


def _no_picture(name: str, place: Place) -> str:
    raise SiteError(place.path, place.line, f"there is no picture `{name}`")


@dataclass
class Heading:
    """A heading: its level, its text as HTML and in words, and the fragment that it is reached by."""

    level: int
    html: str
    words: str
    id: str


@dataclass
class Note:
    """A rendered note, and what others want to know of it."""

    html: str
    headings: list[Heading]
    words: str


@dataclass
class Surroundings:
    """
    What a page knows about its links: `resolve` an address, `picture` gives the HTML of a picture by its name (the
    picture knows what is to be seen on it), `name` the address of an identifier in running text.
    """

    path: Path
    maths: Maths
    resolve: Resolve
    picture: Resolve = _no_picture
    name: Callable[[str], str | None] = lambda identifier: None
    slugs: set[str] = field(default_factory=set)


class Text:
    """Markdown of one kind for all pages."""

    def __init__(self) -> None:
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        self._markdown.use(dollarmath_plugin, double_inline=True).use(amsmath_plugin)
        self._renderer = RendererHTML(self._markdown)
        self._markdown.renderer = self._renderer
        for name, rule in vars(_Rules).items():
            if isinstance(rule, staticmethod):
                self._markdown.add_render_rule(name, rule.__func__)

    def render(self, text: str, first_line: int, surroundings: Surroundings, section: str | None = None) -> Note:
        """
        The note that starts at line `first_line`. Its first heading is reached by `section`, others, and all where that
        is None, by words of their own.
        """
        tokens = self._markdown.parse(text)
        headings: list[Heading] = []
        options, environment = self._markdown.options, {"around": surroundings}
        for token in tokens:
            line = first_line + (token.map[0] if token.map else 0)
            token.meta["line"] = line
            for child in token.children or ():
                child.meta["line"] = line
                line += child.type in ("softbreak", "hardbreak")
        for index, token in enumerate(tokens):
            if token.type == "paragraph_open" and _is_picture(tokens[index + 1]):
                # A picture is a figure, which is no part of a paragraph.
                token.hidden = tokens[index + 2].hidden = True
            if token.type == "heading_open":
                inline = tokens[index + 1]
                words = _words(inline.children or [])
                first = section is not None and not headings
                id = str(section) if first else _slug(words, surroundings.slugs)
                # The section itself has the id that its first heading is reached by.
                token.meta.update(id=id, given=first)
                html = self._renderer.renderInline(inline.children or [], options, environment)
                headings.append(Heading(int(token.tag[1]), html, words, id))
        html = self._renderer.render(tokens, options, environment)
        words = " ".join(_words(t.children or []) for t in tokens if t.type == "inline")
        return Note(html, headings, words)


def _slug(words: str, taken: set[str]) -> str:
    """The fragment of a heading that has none yet."""
    base = fresh = slug(words)
    number = 0
    while fresh in taken:
        fresh = f"{base}-{(number := number + 1)}"
    taken.add(fresh)
    return fresh


def _words(tokens: Sequence[Token]) -> str:
    breaks = ("softbreak", "hardbreak")
    plain = ("text", "code_inline", "math_inline", "math_inline_double")
    return "".join(
        " " if token.type in breaks else token.content if token.type in plain else _words(token.children or [])
        for token in tokens
    )


def _place(token: Token, env: dict[str, Any]) -> Place:
    return Place(env["around"].path, token.meta["line"])


def _formula(token: Token, env: dict[str, Any], display: bool) -> str:
    html = env["around"].maths.ask(token.content, display, _place(token, env))
    # Formulas may be wider than a telephone: they scroll, and the keyboard reaches them.
    return f'<div class="formula" role="group" aria-label="Formula" tabindex="0">{html}</div>' if display else html


class _Rules:
    """How single tokens are rendered; `this` is the renderer."""

    @staticmethod
    def math_inline(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        return _formula(tokens[index], env, False)

    @staticmethod
    def math_inline_double(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        # Stands within a paragraph, where no block may be.
        html = env["around"].maths.ask(tokens[index].content, True, _place(tokens[index], env))
        return f'<span class="formula" role="group" aria-label="Formula" tabindex="0">{html}</span>'

    @staticmethod
    def math_block(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        return _formula(tokens[index], env, True) + "\n"

    amsmath = math_block

    @staticmethod
    def fence(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        token = tokens[index]
        language = token.info.split()[0] if token.info.strip() else "text"
        try:
            return code.block(token.content, language)
        except ClassNotFound as error:
            place = _place(token, env)
            raise SiteError(place.path, place.line, f"`{language}` is no language that can be coloured") from error

    @staticmethod
    def code_block(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        # Of docstrings: commands, or Python.
        content = tokens[index].content
        return code.block(content, "sh" if re.match(r"\$ |python |pip |npm ", content.lstrip()) else "python")

    @staticmethod
    def code_inline(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        words = tokens[index].content
        html = f"<code>{escape(words, quote=False)}</code>"
        types = [token.type for token in tokens[:index]]
        inside_link = types.count("link_open") > types.count("link_close")
        address = None if inside_link else env["around"].name(words)
        return f'<a href="{escape(address)}">{html}</a>' if address else html

    @staticmethod
    def link_open(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        token = tokens[index]
        address = env["around"].resolve(str(token.attrs["href"]), _place(token, env))
        return f'<a href="{escape(address)}">'

    @staticmethod
    def image(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        around: Surroundings = env["around"]
        return around.picture(str(tokens[index].attrs["src"]), _place(tokens[index], env))

    @staticmethod
    def heading_open(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        token = tokens[index]
        return f"<{token.tag}>" if token.meta["given"] else f'<{token.tag} id="{escape(token.meta["id"])}">'

    @staticmethod
    def heading_close(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        id = tokens[index - 2].meta["id"]
        mark = f'<a class="permalink" href="#{escape(id)}" aria-label="Link to this section">#</a>' if id else ""
        return f"{mark}</{tokens[index].tag}>\n"

    @staticmethod
    def table_open(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        return '<div class="table" role="group" aria-label="Table" tabindex="0"><table>\n'

    @staticmethod
    def table_close(this: Any, tokens: Sequence[Token], index: int, options: Any, env: dict[str, Any]) -> str:
        return "</table></div>\n"


def _is_picture(inline: Token) -> bool:
    return [child.type for child in inline.children or ()] == ["image"]
