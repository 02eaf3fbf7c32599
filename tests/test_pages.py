"""
The pages of `docs/`, and the README: their code runs as it stands there and prints what they say; no link is dead.

The blocks of a page run in order, as one module. A `text` block right after one in `python` is what it prints, where
`...` stands for anything, as in doctest. A block whose first line is `# name.py` is a file of that name. One that
begins with `# needs: package` is left out where the package isn't installed; `# not run: why` leaves it out always.
"""

import ast
import contextlib
import doctest
import importlib.util
import io
import linecache
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.M | re.S)
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")

#: Pages whose blocks are programs for several processes; `test_docs.py` runs them.
PROGRAMS = {"distributed.md"}


def read(page):
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page):
    """The code of a page with what it prints, and the line where it begins."""
    text = read(page)
    for found in BLOCK.finditer(text):
        yield found[1], found[2] or "", text.count("\n", 0, found.start()) + 2


RUNNING = [page for page in (*PAGES, "../README.md") if page not in PROGRAMS and any(blocks(page))]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a block in the module of its page, in an empty folder, and give what it prints."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    # A class can be pickled where its module can be found.
    monkeypatch.setitem(sys.modules, "page", module)
    files = []

    def run(page, code, line):
        named = re.match(r"# (\w+\.py)\n", code)
        # Traceback and kernels name the line of the page, or that of the file which the block is.
        name = named[1] if named else str(DOCS / page)
        if named:
            files.append(name)
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            # labml has LaTeX in docstrings that are not raw. Whoever compiles them first is told so.
            warnings.filterwarnings("ignore", ".*invalid escape sequence")
            exec(compile(code if named else "\n" * (line - 1) + code, name, "exec"), module.__dict__)
        return printed.getvalue()

    yield run
    for name in files:
        linecache.cache.pop(name, None)
    torch.set_default_dtype(torch.float32)


def is_left_out(code):
    needed = re.match(r"# needs: (\w+)\n", code)
    return code.startswith("# not run: ") or (needed and importlib.util.find_spec(needed[1]) is None)


@pytest.mark.parametrize("page", RUNNING)
def test_code_runs_and_prints_what_the_page_says(page, run):
    for code, expected, line in blocks(page):
        if is_left_out(code):
            continue
        printed = run(page, code, line)
        same = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
        assert same, f"{page}:{line} prints\n{printed}\nnot\n{expected}"


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_heading_of_its_own(page):
    text = FENCED.sub("", read(page))
    assert len(re.findall("^# ", text, re.M)) == 1
    if page != "numerics.md":
        assert re.match(r"---\ntitle: .+\nsummary: .+\n(\w+: .+\n)*---\n\n# ", text)


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_no_wider_than_code(page):
    """A row of a table, and an address, can't be broken."""
    wide = [x for x in FENCED.sub("", read(page)).splitlines() if len(x) > 120 and not x.startswith("|")]
    assert [x for x in wide if not re.search(r"\]\(\S{60,}\)", x)] == []


# Links


def headings(text):
    """The fragments of a page, as GitHub makes them."""
    titles = re.findall("^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def definitions(tree, prefix=""):
    """Classes, functions and methods, by their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield prefix + node.name
            yield from definitions(node, f"{prefix}{node.name}.")


def is_dead(page, link):
    target, _, fragment = link.partition("#")
    path = (DOCS / target).resolve() if target else DOCS / page
    if path.suffix in (".svg", ".png"):
        # Pictures are drawn when the site is built.
        return False
    if not path.is_file():
        return True
    text = path.read_text(encoding="utf-8")
    return bool(fragment) and fragment not in (
        set(definitions(ast.parse(text))) if path.suffix == ".py" else headings(text)
    )


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    links = LINK.findall(FENCED.sub("", read(page)))
    assert [link for link in links if "://" not in link and is_dead(page, link)] == []


def test_dead_links_are_seen():
    assert is_dead("index.md", "nowhere.md")
    assert is_dead("distributed.md", "#nowhere")
    assert is_dead("index.md", "../optimizers/adam.py#Adam.nowhere")
    assert not is_dead("distributed.md", "#ddp-the-batch-is-shared")
    assert not is_dead("index.md", "../optimizers/adam.py#Adam.get_mv")
