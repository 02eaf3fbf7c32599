"""The site as its readers get it: in Debian's chromium, by mouse and by keyboard, without scripts, and on paper."""

import ast
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import tokenize
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote

import pytest
import torch
from filelock import FileLock

import optimizers
from tests.rules import RULES

REPOSITORY = Path(__file__).parent.parent
MODULES_OF_NODE = REPOSITORY / "docs" / "node_modules"
HTML_VALIDATE, AXE = MODULES_OF_NODE / ".bin" / "html-validate", MODULES_OF_NODE / "axe-core" / "axe.min.js"

pytest.importorskip("markdown_it", reason="the site's generator is not installed: pip install -e .[docs]")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e .[test]")

MISSING = [tool for tool in ("chromium", "node") if not shutil.which(tool)]
MISSING += [] if AXE.is_file() and HTML_VALIDATE.is_file() else ["what `npm ci --prefix docs` installs"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

THEMES = ("light", "dark")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def page_of(module):
    inside = module.relative_to(REPOSITORY / "optimizers")
    if inside.name != "__init__.py":
        return inside.with_suffix(".html").as_posix()
    return "optimizers.html" if inside.parent == Path() else (inside.parent / "index.html").as_posix()


#: The sources of pages. What the generator thinks of them is not asked.
MODULES = {page_of(p): p for p in sorted((REPOSITORY / "optimizers").rglob("*.py")) if p.name != "__main__.py"}
GUIDES = [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
TEXTS = {f"{path.stem.lower()}.html": path for path in GUIDES}
PAGES = [*TEXTS, *MODULES]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Built once, for all processes that take turns with the tests."""
    from docs.site.build import build

    here = tmp_path_factory.getbasetemp()
    shared = here.parent if here.name.startswith("popen-") else here
    with FileLock(shared / "site.lock"):
        if not (shared / "site").exists():
            build(shared / "site")
    return shared / "site"


@pytest.fixture(scope="module")
def chromium():
    # Names are not looked up, so that even a page that asks for something can't get it.
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


class Reader:
    """A window, and what went wrong in it: errors, warnings, requests that failed or left."""

    def __init__(self, browser, root, **options):
        self.root = root
        self.troubles = []
        options = {"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce", **options}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._asked)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.troubles.append(f"{message.type}: {message.text}")

    def _failed(self, request):
        # Who goes on to another page waits no longer for this one's icon.
        if request.failure != "net::ERR_ABORTED":
            self.troubles.append(f"failed: {request.url}")

    def _asked(self, request):
        if not request.url.startswith((self.root, "data:")):
            self.troubles.append(f"left: {request.url}")

    def open(self, address):
        self.page.goto(f"{self.root}/{address}")
        return self.page

    def visit(self, address):
        self.troubles.clear()
        self.address = address
        self.page.set_viewport_size(WIDE)
        self.page.emulate_media(color_scheme="light")
        self.open(address)
        return self


@pytest.fixture
def reader(chromium, site):
    """Opens windows on the files of the site. No test may leave troubles behind."""
    readers = []

    def open_window(root=None, **options):
        readers.append(Reader(chromium, root or site.as_uri(), **options))
        return readers[-1]

    yield open_window
    for each in readers:
        each.context.close()
    troubles = [trouble for each in readers for trouble in each.troubles]
    assert not troubles


@pytest.fixture(scope="module")
def tab(chromium, site):
    one = Reader(chromium, site.as_uri())
    yield one
    one.context.close()


@pytest.fixture(scope="module", params=PAGES)
def visit(request, tab):
    """Each page, opened once for all tests that ask for it: they come one after the other."""
    return tab.visit(request.param)


@pytest.fixture(scope="module")
def server(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# The files, without a browser


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent = tag, dict(attributes), parent
        self.parts = []

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def around(self):
        return [self.parent, *self.parent.around] if self.parent else []


class Document(HTMLParser):
    VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr")

    def __init__(self, html):
        super().__init__()
        self.open = Element("", {}, None)
        self.elements = []
        self.feed(html)
        self.close()
        assert self.open.parent is None, f"<{self.open.tag}> is not closed"
        self.ids = {e.attributes["id"] for e in self.elements if "id" in e.attributes}

    def handle_starttag(self, tag, attrs):
        element = Element(tag, attrs, self.open)
        self.open.parts.append(element)
        self.elements.append(element)
        if tag not in self.VOID:
            self.open = element

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open = self.open.parent

    def handle_endtag(self, tag):
        assert tag == self.open.tag, f"</{tag}> closes <{self.open.tag}>"
        self.open = self.open.parent

    def handle_data(self, data):
        self.open.parts.append(data)

    def having(self, tag, kind=None):
        return [e for e in self.elements if e.tag == tag and (kind is None or kind in e.classes)]


@functools.cache
def document(file):
    return Document(file.read_text(encoding="utf-8"))


def test_every_module_and_every_text_has_its_page(site):
    assert {file.relative_to(site).as_posix() for file in site.rglob("*.html")} == set(PAGES)


def test_every_internal_link_and_fragment_resolves(site):
    files = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    links = []
    for page in PAGES:
        for element in document(site / page).elements:
            links += [(page, element.attributes[name]) for name in ("href", "src") if name in element.attributes]
            for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
                links += [(page, f"#{id}") for id in (element.attributes.get(name) or "").split()]
    script = (site / "static" / "search-index.js").read_text(encoding="utf-8")
    links += [("index.html", entry["id"]) for entry in json.loads(script.removeprefix("window.searchIndex = ")[:-2])]
    for style in (site / "static").glob("*.css"):
        urls = re.findall(r"url\((.*?)\)", style.read_text(encoding="utf-8"))
        links += [(f"static/{style.name}", url.strip("\"'")) for url in urls]
    dead = []
    for page, link in links:
        if link.startswith("https://"):
            continue
        where, _, fragment = link.partition("#")
        address = normpath(join(dirname(page), unquote(where))) if where else page
        if address not in files or (fragment and unquote(fragment) not in document(site / address).ids):
            dead.append((page, link))
    assert not dead
    assert len(links) > 10_000


def test_fragments_are_names_and_identifiers_lead_to_their_definitions(site):
    adam = document(site / "adam.html")
    assert {"Adam", "Adam.get_mv", "Adam.init_state"} <= adam.ids
    links = {(a.text, a.attributes["href"]) for a in adam.having("a") if any(e.tag == "pre" for e in a.around)}
    assert ("GenericAdaptiveOptimizer", "base.html#GenericAdaptiveOptimizer") in links
    assert ("WeightDecay", "weight_decay.html#WeightDecay") in links
    links = {(a.text, a.attributes["href"]) for a in document(site / "engines" / "stepper.html").having("a")}
    assert ("Cohort", "cohort.html#Cohort") in links


def spans(element):
    for span in element.attributes["data-lines"].split():
        first, last = map(int, span.split("-"))
        yield from range(first, last + 1)


@pytest.mark.parametrize("page", MODULES)
def test_every_source_line_appears_exactly_once(site, page):
    source = dict(enumerate(MODULES[page].read_text(encoding="utf-8").splitlines(), 1))
    parts = [e for e in document(site / page).elements if "data-lines" in e.attributes]
    notes = [line for part in parts if "notes" in part.classes for line in spans(part)]
    code = [line for part in parts if "code" in part.classes for line in spans(part)]
    assert sorted(notes + code) == list(source)
    shown = [(int(e.attributes["id"][1:]), e.text.rstrip("\n")) for e in document(site / page).having("span", "line")]
    assert [line for line, _ in shown] == sorted(code)
    assert dict(shown) == {line: source[line] for line in code}


@pytest.mark.slow
def test_html_is_valid(site):
    """
    What the configuration turns off is KaTeX's: it has `class ="…"` in its MathML, and sets the heights of its boxes by
    styles. An id is a qualified name, so it may have points.
    """
    config = REPOSITORY / "docs" / ".htmlvalidate.json"
    command = [HTML_VALIDATE, "--config", config, "--formatter", "text", *(site / page for page in PAGES)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=config.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


# Formulas


def notes_of(source):
    """Docstrings of modules, classes and functions, and comments that have their lines for themselves."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
    comments = [
        (*token.start, token.string.lstrip("#: "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    ]
    block = ""
    for (line, column, text), following in pairwise([*comments, (0, 0, "")]):
        block += text + "\n"
        if following[:2] != (line + 1, column):
            yield block
            block = ""


def formulas_in(markdown):
    text = re.sub(r"^( *)```.*?^\1```", "", markdown, flags=re.S | re.M)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n+)+", "", text + "\n")
    text = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text, flags=re.S)
    count = 0
    inline = r"(?<![\\\w$])\$(?![\s$])[^$]*?[^\s$\\]\$(?!\d)"
    for formula in (r"\$\$.+?\$\$", r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", inline):
        text, found = re.subn(formula, "", text, flags=re.S)
        count += found
    return count


def formulas_of(page):
    if page in TEXTS:
        return formulas_in(TEXTS[page].read_text(encoding="utf-8"))
    return sum(map(formulas_in, notes_of(MODULES[page].read_text(encoding="utf-8"))))


def test_formulas_are_counted_where_they_are():
    assert formulas_in("Of $x$, $y_1$ and\n$z\n+ 1$. $$a$$\n\n\\begin{align}\na &= b\n\\end{align}\n") == 5
    assert formulas_in("`$x$` costs 5$, or\n\n```\n$x$\n```\n\n    $ pip $x$\n\n    $y$\n\nthat is\n    $z$.") == 1
    assert sum(map(formulas_of, PAGES)) > 500


RENDERED = """() => {
  const formulas = [...document.querySelectorAll(".notes .katex")].filter((formula) => !formula.closest("figure"));
  const empty = (element) => !element || element.getBoundingClientRect().width === 0;
  return {
    count: formulas.length,
    unseen: formulas.filter((formula) => empty(formula.querySelector(".katex-html"))).length,
    unread: formulas.filter((formula) => !formula.querySelector(".katex-mathml math").textContent.trim()).length,
  };
}"""


def test_there_are_as_many_rendered_formulas_as_in_the_source(visit):
    assert visit.page.evaluate(RENDERED) == {"count": formulas_of(visit.address), "unseen": 0, "unread": 0}


# Every page, as it is seen

FONTS = """async () => {
  await document.fonts.ready;
  const fonts = new Set();
  for (const element of document.querySelectorAll(".katex-html *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!element.checkVisibility()) continue;
    const { fontStyle, fontWeight, fontFamily } = getComputedStyle(element);
    fonts.add(`${fontStyle} ${fontWeight} 16px ${fontFamily.split(",")[0]}`);
  }
  return {
    katex: [...fonts].filter((font) => /KaTeX/.test(font)).length,
    others: [...fonts].filter((font) => !/KaTeX/.test(font)),
    missing: [...fonts].filter((font) => !document.fonts.check(font)),
    broken: [...document.fonts].filter((font) => font.status === "error").map((font) => font.family),
  };
}"""
WIDTH = """async () => {
  await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
  return document.scrollingElement.scrollWidth;
}"""
UNREACHABLE = """() => [...document.querySelectorAll("body *")]
  .filter((element) => element.scrollWidth > element.clientWidth + 1 && element.tabIndex < 0)
  .filter((element) => /auto|scroll/.test(getComputedStyle(element).overflowX))
  .map((element) => element.outerHTML.slice(0, 200))"""


def test_page_has_the_fonts_of_its_formulas(visit):
    fonts = visit.page.evaluate(FONTS)
    assert bool(fonts.pop("katex")) == bool(formulas_of(visit.address) or visit.page.locator(".katex").count())
    assert fonts == {"others": [], "missing": [], "broken": []}


def test_page_fits_its_window_and_what_scrolls_is_reached_by_the_keyboard(visit):
    for size in (WIDE, NARROW):
        visit.page.set_viewport_size(size)
        for theme in THEMES:
            visit.page.emulate_media(color_scheme=theme)
            assert visit.page.evaluate(WIDTH) <= size["width"], f"{theme}, {size['width']} px"
        assert not visit.page.evaluate(UNREACHABLE), f"{size['width']} px"


def test_page_says_no_error_and_asks_nobody(visit):
    assert not visit.troubles


def test_what_would_be_found_is_found(chromium, tmp_path):
    (tmp_path / "page.html").write_text(
        "<body><img src='gone.png'><script src='https://example.org/x.js'></script>"
        "<script>console.error('said'); console.warn('warned'); throw Error('thrown')</script>"
        "<div style='width: 2000px'>wide</div><div style='overflow: auto; width: 9px'>scrolls</div>"
    )
    window = Reader(chromium, tmp_path.as_uri())
    page = window.open("page.html")
    assert page.evaluate(WIDTH) > 1280
    assert len(page.evaluate(UNREACHABLE)) == 1
    told = "\n".join(window.troubles)
    for trouble in ("said", "warned", "thrown", "failed: file:///", "left: https://example.org/x.js"):
        assert trouble in told
    window.context.close()


@pytest.mark.parametrize("page", ["index.html", "adam.html", "radam.html", "engines/eager.html", "performance.html"])
def test_page_reads_the_same_without_scripts(reader, page):
    with_scripts, without = (reader(java_script_enabled=enabled).open(page) for enabled in (True, False))
    text = without.inner_text("main")
    assert text == with_scripts.inner_text("main")
    assert len(text) > 300
    assert without.evaluate(RENDERED) == {"count": formulas_of(page), "unseen": 0, "unread": 0}
    switches = ".search, button.theme"
    assert with_scripts.locator(switches).filter(visible=True).count() == 2
    assert not without.locator(switches).filter(visible=True).count()


AXE_RUN = """() => axe.run(document, { resultTypes: ["violations"], preload: false }).then((found) =>
  found.violations.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.target}: ${node.failureSummary}`)))"""


def violations(window, theme):
    """What axe finds, by all of its rules."""
    window.emulate_media(color_scheme=theme)
    if not window.evaluate("() => 'axe' in window"):
        window.evaluate(AXE.read_text(encoding="utf-8"))
    return window.evaluate(AXE_RUN)


#: One page of each kind. The others take a second each.
OF_EACH_KIND = ("index.html", "performance.html", "playground.html", "radam.html", "engines/cohort.html")


@pytest.mark.parametrize(
    "page", [page if page in OF_EACH_KIND else pytest.param(page, marks=pytest.mark.slow) for page in PAGES]
)
def test_axe_finds_no_violation_in_both_themes(tab, page):
    window = tab.visit(page).page
    # What is folded away is looked at too.
    window.evaluate("() => document.querySelectorAll('details').forEach((each) => (each.open = true))")
    for theme in THEMES:
        assert not violations(window, theme), theme


@pytest.mark.slow
def test_axe_finds_no_violation_in_results_and_on_a_telephone(reader):
    window = reader(viewport=NARROW).open("radam.html")
    window.fill("#search", "momentum")
    window.wait_for_selector(".found a")
    for theme in THEMES:
        assert not violations(window, theme), theme


# The search

TERM = "radam.html#RAdam.calc_rectification_term"


def in_view(window, id):
    """Whether a section is where the reader looks, and nothing lies over it."""
    return window.evaluate(
        """(id) => {
          const heading = document.getElementById(id).querySelector("h1, h2, h3, h4, .name");
          const { left, top, bottom } = heading.getBoundingClientRect();
          return bottom < innerHeight && heading.contains(document.elementFromPoint(left + 2, top + 2));
        }""",
        id,
    )


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("way", ["files", "server"])
def test_search_finds_a_section_and_jumps_to_it(reader, server, size, way):
    visit = reader(viewport=size, **({"root": server} if way == "server" else {}))
    # From a folder, so that the way there is not trivial.
    window = visit.open("engines/index.html")
    window.keyboard.press("/")
    window.keyboard.type("rectification term")
    window.wait_for_selector(".found a")
    first = window.locator(".found a").first
    assert "RAdam" in first.inner_text()
    assert first.locator("mark").count()
    assert re.fullmatch(r"\d+ results?", window.inner_text("#search-status"))
    window.keyboard.press("Enter")
    window.wait_for_url(f"{visit.root}/{TERM}")
    assert in_view(window, "RAdam.calc_rectification_term")


def test_search_on_the_page_itself_closes_and_jumps(reader):
    window = reader().open("radam.html")
    window.fill("#search", "rectification term")
    window.locator(".found a").first.click()
    assert window.url.endswith(TERM)
    assert window.locator(".found").is_hidden()
    assert in_view(window, "RAdam.calc_rectification_term")


def test_search_is_worked_by_the_keyboard(reader):
    window = reader().open("index.html")
    window.keyboard.press("/")
    window.keyboard.type("adam")
    window.wait_for_selector(".found a")
    focused = window.locator(":focus")
    assert focused.get_attribute("id") == "search"
    assert focused.input_value() == "adam"
    window.keyboard.press("ArrowDown")
    window.keyboard.press("ArrowDown")
    second = window.locator(".found a").nth(1).get_attribute("href")
    assert focused.get_attribute("href") == second
    window.keyboard.press("ArrowUp")
    window.keyboard.press("ArrowUp")
    assert focused.get_attribute("id") == "search"
    window.keyboard.press("Escape")
    assert window.locator(".found").is_hidden()
    window.keyboard.press("Control+a")
    window.keyboard.type("xyzzyx")
    window.get_by_text("Nothing found.").wait_for()
    assert window.inner_text("#search-status") == "0 results"
    window.keyboard.press("Control+a")
    window.keyboard.press("Delete")
    window.wait_for_selector(".found", state="hidden")
    window.keyboard.type("adam")
    window.wait_for_selector(".found a")
    window.keyboard.press("ArrowDown")
    first = focused.get_attribute("href")
    window.keyboard.press("Enter")
    window.wait_for_url(f"**/{first.removeprefix('./')}")


# The theme

LIGHT_GROUND, DARK_GROUND = "rgb(255, 255, 255)", "rgb(21, 24, 28)"
GROUND = "() => getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("system", THEMES)
def test_theme_starts_with_the_system_and_its_switch_is_remembered(reader, system):
    grounds = (LIGHT_GROUND, DARK_GROUND) if system == "light" else (DARK_GROUND, LIGHT_GROUND)
    visit = reader(color_scheme=system)
    window = visit.open("adam.html")
    other = {"light": "dark", "dark": "light"}[system]
    switch = window.get_by_role("button", name=f"Change to the {other} theme")
    assert window.evaluate(GROUND) == grounds[0]
    switch.click()
    assert window.evaluate(GROUND) == grounds[1]
    assert window.get_by_role("button", name=f"Change to the {system} theme").is_visible()
    window.reload()
    assert window.evaluate(GROUND) == grounds[1]
    visit.open("engines/index.html")
    assert window.evaluate(GROUND) == grounds[1]
    window.get_by_role("button", name=f"Change to the {system} theme").click()
    visit.open("adam.html")
    assert window.evaluate(GROUND) == grounds[0]


def test_theme_follows_the_system_until_it_is_chosen(reader):
    window = reader().open("adam.html")
    window.emulate_media(color_scheme="dark")
    assert window.evaluate(GROUND) == DARK_GROUND
    assert window.get_by_role("button", name="Change to the light theme").is_visible()


@pytest.mark.parametrize("theme", THEMES)
def test_theme_is_the_same_whether_chosen_or_the_systems(reader, theme):
    """The colours stand twice in the style sheets."""
    colours = """() => [...document.querySelectorAll("body, a, .side, pre *, svg *, figcaption")].map((element) => {
      const { color, backgroundColor, fill, stroke } = getComputedStyle(element);
      return [color, backgroundColor, fill, stroke].join();
    })"""
    window = reader(color_scheme=theme).open("adam.html")
    by_system = window.evaluate(colours)
    window.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    assert window.evaluate(colours) != by_system
    window.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
    assert window.evaluate(colours) == by_system


# The keyboard, and paper


def test_skip_link_is_the_first_stop_and_leads_to_the_content(reader):
    window = reader().open("adam.html")
    window.keyboard.press("Tab")
    focused = window.locator(":focus")
    assert focused.inner_text() == "Skip to the content"
    assert focused.bounding_box()["y"] >= 0
    window.keyboard.press("Enter")
    assert focused.get_attribute("id") == "content"
    window.keyboard.press("Tab")
    assert window.evaluate("() => document.querySelector('main').contains(document.activeElement)")


@pytest.mark.parametrize("page", ["index.html", "radam.html", "playground.html"])
def test_focus_is_seen_at_every_stop(reader, page):
    window = reader().open(page)
    stops = set()
    for _ in range(40):
        window.keyboard.press("Tab")
        stop = window.evaluate(
            """() => {
              const element = document.activeElement;
              const { top, bottom, width } = element.getBoundingClientRect();
              const { outlineStyle, opacity } = getComputedStyle(element);
              const seen = outlineStyle !== "none" && opacity > 0.5 && width > 0 && bottom > 0 && top < innerHeight;
              return [element.outerHTML.slice(0, 150), seen];
            }"""
        )
        assert stop[1], stop[0]
        stops.add(stop[0])
    assert len(stops) > 25


@pytest.mark.parametrize("theme", THEMES)
def test_paper_has_the_text_in_ink_and_nothing_to_click(reader, theme):
    window = reader().open("radam.html")
    window.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
    window.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    window.emulate_media(media="print")
    for gone in (".top", ".crumbs", ".turn", "footer", ".skip", ".toc"):
        assert window.locator(gone).is_hidden(), gone
    assert window.get_by_role("heading", name="RAdam", exact=True).is_visible()
    assert window.evaluate(GROUND) == LIGHT_GROUND
    cut = "() => [...document.querySelectorAll('.code')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert not window.evaluate(cut)
    window.emulate_media(media="screen")
    window.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert window.evaluate("() => document.documentElement.dataset.theme") == theme


# The playground


def rows(window):
    return [row.split("\t") for row in window.inner_text("#results").strip().split("\n")]


def painted(window, canvas, series):
    """How many pixels have the colour of a series."""
    return window.evaluate(
        """([canvas, series]) => {
          const seen = document.getElementById(canvas);
          const copy = new OffscreenCanvas(seen.width, seen.height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(seen, 0, 0);
          const { data } = copy.getImageData(0, 0, seen.width, seen.height);
          const name = `--picture-series-${series}`;
          const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
          const wanted = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
          let count = 0;
          for (let i = 0; i < data.length; i += 4) {
            count += data[i + 3] === 255 && wanted.every((colour, k) => Math.abs(data[i + k] - colour) < 3);
          }
          return count;
        }""",
        [canvas, series],
    )


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", THEMES)
def test_playground_draws_the_chosen_rules(reader, size, theme):
    window = reader(viewport=size, color_scheme=theme).open("playground.html")
    assert [row[0] for row in rows(window)] == ["SGD", "Adam", "Lion"]
    for canvas in ("plane", "curve"):
        assert [painted(window, canvas, series) > 20 for series in (1, 2, 3, 4)] == [True, True, True, False]
    window.locator("button.theme").click()
    # In the colours of the other theme now.
    assert painted(window, "plane", 1) > 20


def test_playground_is_worked_by_the_keyboard(reader):
    window = reader().open("playground.html")
    before = rows(window)
    window.get_by_label("lr").first.focus()
    window.keyboard.press("ArrowLeft")
    after = rows(window)
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    window.get_by_label("Steps").focus()
    window.keyboard.press("ArrowRight")
    assert window.locator("output[for=steps]").inner_text() == "81"
    assert all(a != b for a, b in zip(rows(window), after, strict=True))
    window.get_by_label("Start, x").focus()
    window.keyboard.press("ArrowRight")
    assert window.locator("output[for=start-x]").inner_text() == "-2.99"
    window.get_by_role("button", name="Start again").press("Enter")
    assert rows(window) == before


def test_playground_takes_rules_in_and_out(reader):
    window = reader().open("playground.html")
    add = window.get_by_role("button", name="Add a rule")
    add.click()
    add.click()
    assert len(rows(window)) == 5
    assert add.is_disabled()
    assert len({row[0] for row in rows(window)}) == 5
    window.get_by_label("Rule 5").select_option("RAdam")
    assert rows(window)[4][0] == "RAdam"
    assert window.locator(":focus").get_attribute("aria-label") == "Rule 5"
    for name in ("SGD", "Adam", "Lion"):
        window.get_by_role("button", name=f"Remove {name}", exact=True).click()
    assert len(rows(window)) == 2
    window.get_by_role("button", name=re.compile("^Remove")).first.click()
    assert window.get_by_role("button", name="Remove RAdam").is_disabled()
    link = window.get_by_role("link", name="About RAdam")
    link.click()
    window.wait_for_url("**/radam.html")


def test_playground_has_surfaces_and_starts_where_one_clicks(reader):
    window = reader().open("playground.html")
    for surface in window.evaluate("() => window.playground.surfaces"):
        before = rows(window)
        window.get_by_label("Surface", exact=True).select_option(surface["title"])
        assert window.inner_text("#lesson") == surface["lesson"]
        start = [float(window.locator(f"output[for=start-{name}]").inner_text()) for name in "xy"]
        assert start == pytest.approx(surface["start"], rel=0.01)
        assert rows(window) != before or surface["name"] == "valley"
        box = window.locator("#plane").bounding_box()
        window.locator("#plane").click(position={"x": box["width"] / 4, "y": box["height"] / 4})
        start = [float(window.locator(f"output[for=start-{name}]").inner_text()) for name in "xy"]
        (left, right), (low, high) = surface["x"], surface["y"]
        assert start == pytest.approx([left + (right - left) / 4, high - (high - low) / 4], abs=0.02)


def test_playground_says_that_it_needs_scripts(reader):
    window = reader(java_script_enabled=False).open("playground.html")
    assert "needs JavaScript" in window.inner_text("main .warning")
    assert window.locator(".playground").is_hidden()


PATHS = """([factor, steps]) => window.playground.rules.map((rule) => window.playground.surfaces.map((surface) => {
  const defaults = Object.fromEntries(rule.hypers.map((hyper) => [hyper.name, hyper.value]));
  const own = { ...defaults, lr: rule.rates[surface.name] };
  for (const name in own) own[name] *= factor;
  return { numbers: own, path: window.playground.path(rule, own, surface, surface.start, steps) };
}))"""


def walk(rule, options, numbers, surface, steps):
    """The path that the library takes, as plain as it can."""
    theta = torch.tensor(surface.start, dtype=torch.float64, requires_grad=True)
    optimizer = getattr(optimizers, rule)([theta], foreach=False, fused=False, **options)
    (group,) = optimizer.param_groups
    for name, value in numbers.items():
        if name in group:
            group[name] = value
        else:
            several, index = f"{name[:-1]}s", int(name[-1]) - 1
            group[several] = (*group[several][:index], value, *group[several][index + 1 :])
    points = [theta.tolist()]
    for _ in range(steps):
        theta.grad = torch.tensor(surface.gradient(*points[-1]), dtype=torch.float64)
        optimizer.step()
        points.append(theta.tolist())
    return torch.tensor(points, dtype=torch.float64)


@pytest.mark.parametrize("factor", [1.0, 0.9], ids=["defaults", "moved_sliders"])
def test_playground_steps_are_the_librarys(reader, factor):
    from docs.pictures.surfaces import SURFACES

    window = reader().open("playground.html")
    rules = window.evaluate("() => JSON.parse(JSON.stringify(window.playground.rules))")
    assert len(rules) >= 15
    assert {rule["rule"] for rule in rules} >= {"SGD", "Adam", "AdamW", "RAdam", "Lion", "Noam", "Rprop", "Adadelta"}
    # Where torch keeps numbers in float32, so do our readers.
    digits = {row.cls.__name__: row.precision for row in sorted(RULES, key=lambda row: row.precision)}
    steps = 50
    for rule, by_surface in zip(rules, window.evaluate(PATHS, [factor, steps]), strict=True):
        for surface, there in zip(SURFACES, by_surface, strict=True):
            ours = walk(rule["rule"], rule["options"], there["numbers"], surface, steps)
            theirs = torch.tensor(there["path"], dtype=torch.float64)
            movement = (ours - ours[0]).abs().max().item()
            assert movement > 0
            difference = (theirs - ours).abs().max().item()
            assert difference <= max(1e-9, digits[rule["rule"]]) * movement, (rule["name"], surface.name)
