"""
Build the site: read all sources, render every page, check every link, and write the result.

Nothing is written before all is right, and then the old site is replaced at once.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from docs.site import code
from docs.site.library import Library
from docs.site.maths import DOCS, KATEX, Maths, Place
from docs.site.names import Names, Target
from docs.site.source import Module, Section, SiteError, front_matter, read_module
from docs.site.text import Heading, Surroundings, Text

REPOSITORY = DOCS.parent
PACKAGE = "optimizers"

#: A file that only our sites have: others are not replaced.
MARKER = ".optimizers-site"

#: Written pages in the order of the menu; those that are not named come after them.
GUIDES = ("index", "write-your-own", "readers", "three-ways", "playground", "coming-from", "distributed", "performance")


@dataclass
class Page:
    """A page of the site. `address` is where it lies in it, `path` the source in the repository."""

    address: str
    path: Path
    title: str
    summary: str
    part: str
    headings: list[Heading] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    #: For the search: fragment, heading, words.
    entries: list[tuple[str, str, str]] = field(default_factory=list)

    def to(self, address: str) -> str:
        """The way from this page to an address in the site."""
        where, sign, fragment = address.partition("#")
        if where == self.address:
            return f"#{fragment}" if sign else ""
        return relpath(where, dirname(self.address) or ".") + sign + fragment


class Site:
    """All pages, and what they have in common."""

    def __init__(self) -> None:
        self.library = Library()
        self.maths = Maths()
        self.text = Text()
        self.modules = dict(read_library())
        self.names = Names(self.modules)
        self.pages: dict[str, Page] = {}
        #: Links within the site, which are checked when all pages are there.
        self.links: list[tuple[Place, str]] = []
        #: Pictures that pages ask for.
        self.asked: list[tuple[Page, str, Place]] = []
        #: Files of the repository that pages link to and that have no page of their own.
        self.sources: set[Path] = set()

    # Addresses

    def module_address(self, name: str) -> str:
        """Where the page of a module lies."""
        if name == PACKAGE:
            return "optimizers.html"
        inside = name.removeprefix(f"{PACKAGE}.").replace(".", "/")
        return f"{inside}/index.html" if self.modules[name].path.name == "__init__.py" else f"{inside}.html"

    def target_address(self, target: Target) -> str:
        """Where a definition is explained, or at least stands."""
        module, qualified = target
        address = self.module_address(module)
        if not qualified:
            return address
        known = any(section.id == qualified for section in self.modules[module].sections)
        return f"{address}#{qualified if known else f'L{self.modules[module].definitions[qualified].lineno}'}"

    def file_address(self, path: Path) -> str:
        """The page of a file in the repository, or a copy of it."""
        for name, module in self.modules.items():
            if module.path == path:
                return self.module_address(name)
        if path.suffix == ".md" and path.parent in (Path("docs"), Path()) and path.name != "README.md":
            return f"{path.stem.lower()}.html"
        self.sources.add(path)
        return f"source/{path.as_posix()}"

    def resolve(self, page: Page, address: str, place: Place) -> str:
        """What a link in the text of a page becomes."""
        if re.match(r"[a-z]+:", address):
            return address
        where, _, fragment = address.partition("#")
        if not where:
            found = page.address
        elif where.endswith(".html"):
            found = normpath(join(dirname(page.address), where))
        else:
            path = Path(normpath(join(page.path.parent.as_posix(), where)))
            if not (REPOSITORY / path).is_file():
                raise SiteError(place.path, place.line, f"dead link: there is no file `{path}`")
            found = self.file_address(path)
        found += f"#{fragment}" if fragment else ""
        self.links.append((place, found))
        return page.to(found)

    # Pages

    def surroundings(self, page: Page, module: str | None = None) -> Surroundings:
        """What the text of a page needs to know."""

        def name(identifier: str) -> str | None:
            target = self.names.find(module or PACKAGE, identifier)
            return page.to(self.target_address(target)) or None if target else None

        return Surroundings(
            page.path,
            self.maths,
            lambda address, place: self.resolve(page, address, place),
            lambda picture, place: self.named_picture(page, picture, place),
            name,
        )

    def named_picture(self, page: Page, name: str, place: Place) -> str:
        """A mark for a picture that the text asks for, which need not be drawn yet."""
        self.asked.append((page, name, place))
        return f"\x04{len(self.asked) - 1}\x05"

    def named_pictures(self) -> list[str]:
        """What the marks stand for. Raises `SiteError` for a picture that there isn't."""
        known = self.library.answer("pictures")
        for _, name, place in self.asked:
            if name not in known:
                raise SiteError(place.path, place.line, f"there is no picture `{name}`")
        return [self.figure(page, known[name]) for page, name, _ in self.asked]

    def figure(self, page: Page, picture: dict[str, str]) -> str:
        """A picture with its caption."""
        caption = self.text.render(picture["caption"], 1, self.surroundings(page)).html
        return Markup(f"<figure>\n{picture['svg']}\n<figcaption>{caption}</figcaption>\n</figure>\n")

    def add_guides(self) -> None:
        """The written pages."""
        files = sorted((REPOSITORY / "docs").glob("*.md"), key=_guide_order)
        for file in [*files, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]:
            path = file.relative_to(REPOSITORY)
            front, text = front_matter(path, file.read_text(encoding="utf-8"))
            page = Page(f"{file.stem.lower()}.html", path, "", "", "Guides")
            note = self.text.render(text, 1, self.surroundings(page))
            _check_headings(path, note.headings)
            page.title = front.get("title", note.headings[0].words)
            page.summary = front.get("summary", "")
            page.headings = note.headings
            page.context = {"template": front.get("template", "text") + ".html", "notes": Markup(note.html)}
            for heading, words in _by_heading(text, note.headings):
                page.entries.append((heading.id, heading.words, words))
            self._add(page)

    def add_modules(self) -> None:
        """The pages of the library, in the order of its index."""
        for name in self._module_order():
            self._add_module(self.modules[name])

    def _add_module(self, module: Module) -> None:
        title, summary = module.front.get("title"), module.front.get("summary", "")
        if not title:
            raise SiteError(module.path, 1, "the docstring of the module has no front matter with a title")
        page = Page(self.module_address(module.name), module.path, title, summary, _part(module.name))
        references = {(r.line, r.column): page.to(self.target_address(r.target)) for r in self.names.references(module)}
        lines = code.highlight(module.text, "python", lambda line, column: references.get((line, column)) or None)
        page.context = {"template": "module.html", "sections": list(self._sections(page, module, lines))}
        self.sources.add(module.path)
        self._add(page)

    def _sections(self, page: Page, module: Module, lines: list[str]) -> Iterator[dict[str, Any]]:
        surroundings = self.surroundings(page, module.name)
        for section in module.sections:
            note = self.text.render(section.notes, section.note_lines.start, surroundings, section.id)
            if not section.id:
                _check_headings(module.path, note.headings)
            page.headings += note.headings
            title = note.headings[0].words if note.headings else section.name
            if section.name or note.headings:
                page.entries.append((section.id, title, f"{section.name} {note.words}"))
            yield {
                "id": section.id,
                "name": section.name,
                "notes": Markup(note.html),
                "note_lines": _span(section.note_lines),
                "code": Markup(_numbered(lines, section)),
                "code_lines": _spans(section.code_lines),
                "is_comment": not section.name and bool(section.id),
            }

    def add_exhibits(self) -> None:
        """What the library has to show on the pages of its modules, each part as soon as it is told."""
        pages = {name.removeprefix(f"{PACKAGE}."): self.pages[self.module_address(name)] for name in self.modules}
        drawn = self.library.answer("rule_pictures")
        for stem, page in pages.items():
            page.context["exhibit"] = {"pictures": [self.figure(page, picture) for picture in drawn.get(stem, [])]}
        rules, nothing = self.library.answer("rules"), {"options": "", "equations": "", "kernels": [], "reason": ""}
        for stem, page in pages.items():
            page.context["exhibit"] |= self._as_executed(page, rules.get(stem, nothing))

    def _as_executed(self, page: Page, rule: dict[str, Any]) -> dict[str, Any]:
        equations = rule["equations"]
        if equations:
            equations = self.maths.ask(equations, True, Place(page.path, 1))
        kernels = [(title, Markup(code.block(source, language))) for title, language, source in rule["kernels"]]
        return {**rule, "equations": Markup(equations), "kernels": kernels}

    def _module_order(self) -> list[str]:
        """As the index links to them, then the others by name."""
        index = self.modules[PACKAGE]
        linked = re.findall(r"\]\((\w+)\.html\)", ast.get_docstring(index.tree) or "")
        by_index = [name for stem in dict.fromkeys(linked) if (name := f"{PACKAGE}.{stem}") in self.modules]
        first = [PACKAGE, *by_index]
        return [*first, *sorted(self.modules.keys() - set(first), key=lambda n: (n.count("."), n))]

    def _add(self, page: Page) -> None:
        self.pages[page.address] = page

    # Output

    def render(self) -> dict[str, str | bytes]:
        """Every file of the site, by its address."""
        self.add_guides()
        self.add_modules()
        # Here the library is waited for, when all else is done.
        drawn = self.named_pictures()
        self.add_exhibits()
        self.maths.render()
        environment = Environment(
            loader=FileSystemLoader(DOCS / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        pages = list(self.pages.values())
        files: dict[str, str | bytes] = {MARKER: ""}
        for index, page in enumerate(pages):
            html = environment.get_template(page.context["template"]).render(
                page=page,
                pages=pages,
                toc=[(h.level, Markup(re.sub(r"</?a\b[^>]*>", "", h.html)), h.id) for h in page.headings],
                before=pages[index - 1] if index else None,
                after=pages[index + 1] if index + 1 < len(pages) else None,
                source=page.to(f"source/{page.path.as_posix()}"),
                root=relpath(".", dirname(page.address) or "."),
                **page.context,
            )
            html = re.sub("\x04(\\d+)\x05", lambda mark: drawn[int(mark[1])], html)
            files[page.address] = self.maths.put_in(html)
            self.sources.add(page.path)
        for path in sorted(self.sources):
            files[f"source/{path.as_posix()}"] = (REPOSITORY / path).read_bytes()
        files["static/search-index.js"] = self._search_index()
        files["static/code.css"] = code.style_sheet()
        files["static/playground-rules.js"] = self.library.answer("playground")
        files |= static_files()
        self.check_links(files)
        return files

    def _search_index(self) -> str:
        entries = [
            {"id": f"{page.address}#{id}" if id else page.address, "page": page.title, "title": title, "words": words}
            for page in self.pages.values()
            for id, title, words in page.entries
        ]
        return f"window.searchIndex = {json.dumps(entries, ensure_ascii=False, indent=0)};\n"

    def check_links(self, files: dict[str, str | bytes]) -> None:
        """Raises `SiteError` for a link to what isn't there, and for a fragment that is there twice."""
        ids, found = {}, list(self.links)
        for address, page in self.pages.items():
            html = str(files[address])
            here = [unescape(id) for id in re.findall(r'\sid="([^"]*)"', html)]
            ids[address] = set(here)
            if len(here) != len(ids[address]):
                twice = sorted({id for id in here if here.count(id) > 1})
                raise SiteError(page.path, 1, f"more than one place has the fragment {twice}")
            for link in re.findall(r'\s(?:href|src)="([^":]*)"', html):
                where, sign, fragment = unescape(link).partition("#")
                whole = normpath(join(dirname(address), where)) if where else address
                found.append((Place(page.path, 1), whole + sign + fragment))
        for place, link in found:
            where, _, fragment = link.partition("#")
            if where not in files:
                raise SiteError(place.path, place.line, f"dead link: there is no page `{where}`")
            if fragment and where in ids and fragment not in ids[where]:
                raise SiteError(place.path, place.line, f"dead link: `{where}` has no `#{fragment}`")


def read_library() -> Iterator[tuple[str, Module]]:
    """All modules of the package."""
    for file in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        path = file.relative_to(REPOSITORY)
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        yield name, read_module(path, name, file.read_text(encoding="utf-8"))


def static_files() -> dict[str, str | bytes]:
    """Style sheets, scripts and fonts."""
    files: dict[str, str | bytes] = {}
    for file in sorted((DOCS / "static").iterdir()):
        files[f"static/{file.name}"] = file.read_bytes()
    css = (KATEX / "dist" / "katex.min.css").read_text(encoding="utf-8")
    # All browsers of today take the first of the three kinds of fonts.
    files["static/katex.css"] = re.sub(r",url\([^)]*\.(?:woff|ttf)\) format\(\"\w+\"\)", "", css)
    for font in sorted((KATEX / "dist" / "fonts").glob("*.woff2")):
        files[f"static/fonts/{font.name}"] = font.read_bytes()
    search = DOCS / "node_modules" / "minisearch" / "dist" / "umd" / "index.js"
    files["static/minisearch.js"] = re.sub(r"\n//# sourceMappingURL.*", "", search.read_text(encoding="utf-8"))
    return files


def build(out: Path) -> int:
    """Build the site in the folder `out` and give the number of its pages. What was there must be an older build."""
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RuntimeError(
            f"{out} is there and is no site that was built before: move it away, or choose another --out"
        )
    site = Site()
    files = site.render()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for address, content in files.items():
            file = fresh / address
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / "site")
            fresh.rename(out)
            shutil.rmtree(old)
        else:
            fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return len(site.pages)


def _guide_order(file: Path) -> tuple[int, str]:
    return (GUIDES.index(file.stem) if file.stem in GUIDES else len(GUIDES), file.stem)


def _part(module: str) -> str:
    parts = module.split(".")
    if module == f"{PACKAGE}.engines" or "engines" in parts:
        return "Engines"
    return "Experiments" if "experiments" in parts else "Library"


def _check_headings(path: Path, headings: list[Heading]) -> None:
    if [heading.level for heading in headings].count(1) != 1 or headings[0].level != 1:
        raise SiteError(path, 1, "a page begins with its title, `# Title`, and has no other heading of that level")


def _by_heading(text: str, headings: list[Heading]) -> Iterator[tuple[Heading, str]]:
    """The words of a written page below each heading."""
    text = re.sub(r"```.*?```", lambda fence: fence[0].replace("\n#", "\n"), text, flags=re.S)
    parts = re.split(r"^#+ .*$", text, flags=re.M)[1:]
    for heading, words in zip(headings, parts, strict=False):
        yield heading, " ".join(re.sub(r"[`*|]+|\]\([^)]*\)|\[", " ", words).split())


def _numbered(lines: list[str], section: Section) -> str:
    """The lines of a section; empty ones at its ends take no room."""
    filled = [number for number in section.code_lines if number <= len(lines) and lines[number - 1].strip()]
    html = []
    for number in section.code_lines:
        content = lines[number - 1] if number <= len(lines) else ""
        edge = not filled or not filled[0] <= number <= filled[-1]
        kind = "line edge" if edge else "line"
        anchor = f'<a class="number" href="#L{number}" data-n="{number}" tabindex="-1" aria-hidden="true"></a>'
        html.append(f'<span class="{kind}" id="L{number}">{anchor}{content}\n</span>')
    return "".join(html)


def _span(lines: range) -> str:
    return f"{lines.start}-{lines.stop - 1}"


def _spans(lines: list[int]) -> str:
    """Numbers of lines, runs of them as `first-last`."""
    spans: list[list[int]] = []
    for line in lines:
        if spans and spans[-1][1] == line - 1:
            spans[-1][1] = line
        else:
            spans.append([line, line])
    return " ".join(f"{first}-{last}" for first, last in spans)
