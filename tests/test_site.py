"""The site's generator: notes beside code, nothing lost, nothing dead."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("markdown_it", reason="the site's generator is not installed: pip install -e .[docs]")

from docs.site import library
from docs.site.build import MARKER, REPOSITORY, Site, build, read_library
from docs.site.maths import KATEX, Maths, Place
from docs.site.names import Names
from docs.site.serve import Handler, stamp
from docs.site.source import SiteError, read_module
from docs.site.text import Surroundings, Text

needs_katex = pytest.mark.skipif(
    not KATEX.is_dir() or not shutil.which("node"), reason="KaTeX is not installed: npm ci --prefix docs"
)

LIBRARY = dict(read_library())

MODULE = '''\
"""
---
title: Example
summary: For tests.
---

# Example

Words with $x$.
"""

import math


# ## Part one
@decorated
def outer(x):
    """### A function"""
    # Why, in two
    # lines.
    y = x + 1  # trailing

    #: Of an attribute.
    return [
        # Within brackets.
        y,
    ]


class Thing:
    """A class."""

    def method(self):
        """Calls."""
        text = """
# no comment
"""
        return self.other(outer(text))

    def other(self, outer):
        """Shadows a name."""
        return outer
'''


def module(text=MODULE, name="optimizers.example"):
    return read_module(Path("optimizers/example.py"), name, text)


def lines_of(sections):
    noted = [line for section in sections for line in section.note_lines]
    return noted + [line for section in sections for line in section.code_lines]


def test_every_line_is_in_one_section():
    assert sorted(lines_of(module().sections)) == list(range(1, MODULE.count("\n") + 1))


@pytest.mark.parametrize("name", LIBRARY)
def test_every_line_of_the_library_is_in_one_section(name):
    found = LIBRARY[name]
    assert sorted(lines_of(found.sections)) == list(range(1, found.text.count("\n") + 1))


def test_notes_stand_beside_the_code_below_them():
    found = module()
    lines = found.lines

    def code(section):
        return "\n".join(lines[n - 1] for n in section.code_lines).strip("\n")

    by_id = {section.id: section for section in found.sections}
    assert list(by_id) == [
        "",
        "part-one",
        "outer",
        "outer-1",
        "outer-2",
        "outer-3",
        "Thing",
        "Thing.method",
        "Thing.other",
    ]
    assert code(by_id["outer"]) == "@decorated\ndef outer(x):"
    assert by_id["outer-1"].notes == "Why, in two\nlines."
    assert code(by_id["outer-1"]) == "    y = x + 1  # trailing"
    assert code(by_id["outer-3"]) == "        y,\n    ]"
    assert "# no comment" in code(by_id["Thing.method"])
    assert found.front == {"title": "Example", "summary": "For tests."}


def test_fragments_stay_when_code_moves():
    moved = module(MODULE.replace("import math\n", "import math\nimport cmath\n\nx = 1\n"))
    assert [section.id for section in moved.sections] == [section.id for section in module().sections]


def test_identifiers_lead_to_their_definition():
    found = module()
    names = Names({found.name: found})
    targets = {(found.lines[r.line - 1][r.column :].split("(")[0], r.target[1]) for r in names.references(found)}
    assert targets == {("outer", "outer"), ("other", "Thing.other")}


def test_identifiers_of_the_library_lead_through_imports_and_bases():
    names = Names(LIBRARY)
    assert names.find("optimizers.radam", "Adam") == ("optimizers.adam", "Adam")
    assert names.find("optimizers", "RAdam.get_mv") == ("optimizers.adam", "Adam.get_mv")
    assert names.find("optimizers.adam", "WeightDecay.__call__") == ("optimizers.weight_decay", "WeightDecay.__call__")
    assert names.find("optimizers.adam", "Tensor") is None


def test_public_name_without_docstring_is_an_error_with_its_line():
    with pytest.raises(SiteError, match=r"optimizers/example.py:40: `Thing.other` is public and has no docstring"):
        module(MODULE.replace('        """Shadows a name."""\n', ""))
    module(MODULE.replace('        """Shadows a name."""\n', "").replace("other", "_other"))


def render(text, **changes):
    def resolve(address, place):
        raise SiteError(place.path, place.line, f"dead link {address}")

    maths = changes.pop("maths", Maths())
    return Text().render(text, 10, Surroundings(Path("page.md"), maths, resolve, **changes))


def test_wrong_formula_is_an_error_with_its_line():
    maths = Maths()
    render("Words,\nthen $\\frac{1}{$ and more.", maths=maths)
    ((formula, display), (_, place)) = next(iter(maths._formulas.items()))
    assert (formula, display, place) == ("\\frac{1}{", False, Place(Path("page.md"), 11))


@needs_katex
@pytest.mark.parametrize(
    "formula", ["$\\frac{1}{$", "$$\\nosuchthing$$", "\\begin{align}\na &= \\\\\n&& \\foo\n\\end{align}"]
)
def test_wrong_formula_stops_the_build(formula):
    maths = Maths()
    render(f"Words.\n\n{formula}\n", maths=maths)
    with pytest.raises(SiteError, match=r"(?s)^page\.md:12: .*in the formula"):
        maths.render()


def test_dead_link_is_an_error_with_its_line():
    with pytest.raises(SiteError, match=r"^page\.md:13: dead link no\.html"):
        render("A paragraph.\n\nAnother,\nwith [a link](no.html).")


def test_unknown_picture_is_an_error_with_its_line():
    with pytest.raises(SiteError, match=r"^page\.md:12: there is no picture `no\.svg`"):
        render("Words.\n\n![Alt](no.svg)")


def test_unknown_language_is_an_error_with_its_line():
    with pytest.raises(SiteError, match=r"^page\.md:12: `nonsense` is no language"):
        render("Words.\n\n```nonsense\nx\n```")


def test_html_in_notes_is_shown_not_done():
    assert "&lt;script&gt;" in render("<script>alert(1)</script> `<b>`").html


@pytest.mark.slow
@needs_katex
def test_two_builds_are_the_same_bytes(tmp_path):
    one, two = Site().render(), Site().render()
    assert one == two


@pytest.mark.slow
@needs_katex
def test_a_build_replaces_an_older_one_and_nothing_else(tmp_path):
    out = tmp_path / "site"
    pages = build(out)
    (out / "stale.html").write_text("old")
    assert build(out) == pages
    assert not (out / "stale.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert len(list(out.rglob("*.html"))) == pages
    (out / MARKER).unlink()
    with pytest.raises(RuntimeError, match=r"no site that was built before.*--out"):
        build(out)
    assert (out / "index.html").exists()


@needs_katex
@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ("[Gone](gone.html)", r"dead link: there is no page `gone\.html`"),
        ("[Gone](adam.html#Adam.no)", r"dead link: `adam\.html` has no `#Adam\.no`"),
        ("[Gone](../setup.py)", r"dead link: there is no file `setup\.py`"),
        ("$\\fraction$", r"KaTeX parse error: Undefined control sequence: \\fraction"),
    ],
)
def test_planted_mistake_in_a_docstring_is_an_error_with_file_and_line(monkeypatch, planted, error):
    lion = LIBRARY["optimizers.lion"]
    line = lion.lines.index("# Lion") + 3
    text = lion.text.replace("# Lion\n", f"# Lion\n\n{planted}\n")
    changed = {**LIBRARY, lion.name: read_module(lion.path, lion.name, text)}
    monkeypatch.setattr("docs.site.build.read_library", changed.items)
    with pytest.raises(SiteError, match=rf"(?s)^optimizers/lion\.py:{line}: {error}"):
        Site().render()


@needs_katex
def test_planted_mistake_in_a_written_page_fails_the_command_and_writes_nothing(tmp_path):
    skip = shutil.ignore_patterns("node_modules", "_site", "__pycache__")
    for folder in ("optimizers", "docs"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=skip)
    (tmp_path / "docs" / "node_modules").symlink_to(REPOSITORY / "docs" / "node_modules")
    for page in REPOSITORY.glob("*.md"):
        shutil.copy(page, tmp_path)
    for other in ("tests", ".ci", "setup.cfg", "constraints.txt", "LICENSE"):
        (tmp_path / other).symlink_to(REPOSITORY / other)
    page = tmp_path / "docs" / "three-ways.md"
    page.write_text(page.read_text().replace("\n## ", "\n[Gone](../optimizers/gone.py)\n\n## ", 1))
    command = [sys.executable, "-m", "docs", "build", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.match(r"error: docs/three-ways\.md:\d+: dead link: there is no file `optimizers/gone\.py`", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Answers of a process that runs a script in place of the library, and the file that they are kept in."""
    file = tmp_path / "sources-of-now.json"
    monkeypatch.setattr(library, "CACHE", tmp_path)
    monkeypatch.setattr(library, "_file", lambda: file)

    def ask(script):
        monkeypatch.setattr(library, "_COMMAND", [sys.executable, "-u", "-c", script])
        return library._answers(file)

    return ask, file


def test_answers_of_the_library_come_one_by_one_and_are_kept_when_all_is_told(asked):
    ask, file = asked
    older = file.with_name("older-sources.json")
    older.touch()
    answers = ask("""print('"one"'); print('{"two": 2}')""")
    assert next(answers) == "one"
    assert not file.exists()
    assert list(answers) == [{"two": 2}]
    assert file.exists()
    assert not older.exists()
    assert list(ask("raise SystemExit('is not asked again')")) == ["one", {"two": 2}]


@pytest.mark.parametrize("end", ["raise ValueError('whatever')", "print('[1, ', end=''); raise ValueError('whatever')"])
def test_library_that_fails_while_it_answers_is_an_error_with_its_words_and_nothing_is_kept(asked, end):
    ask, file = asked
    answers = ask(f"print(1); {end}")
    assert next(answers) == 1
    with pytest.raises(RuntimeError, match=r"(?s)the library could not be asked.*ValueError: whatever"):
        next(answers)
    assert not file.exists()


def test_answers_are_not_kept_where_a_source_changed_while_they_were_given(asked, monkeypatch):
    ask, file = asked
    answers = ask("print(1)")
    assert next(answers) == 1
    monkeypatch.setattr(library, "_file", lambda: file.with_name("sources-of-later.json"))
    assert list(answers) == []
    assert list(file.parent.iterdir()) == []


def test_answers_are_those_to_the_questions(monkeypatch):
    monkeypatch.setattr(library, "_answers", lambda file: iter("abcd"))
    asks = library.Library()
    assert [asks.answer(question) for question in ("pictures", "rule_pictures", "rules", "playground")] == list("abcd")


def test_server_sees_every_source_and_nothing_that_a_build_makes():
    seen = {path.relative_to(REPOSITORY).as_posix() for path in stamp()}
    assert {"optimizers/adam.py", "docs/index.md", "docs/static/site.css", "docs/templates/base.html"} <= seen
    assert not any(made in path for path in seen for made in ("node_modules", "_site", "_cache", "__pycache__"))
    assert Handler.builds == 0
