"""
---
title: A page to look at
summary: All pictures on one page, in light and dark.
---

# A page to look at

    python -m docs.pictures --out DIR [--only PAGE ...]
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path
from time import perf_counter

_STYLE = Path(__file__).parents[1] / "static" / "pictures.css"

#: What a page gives to the pictures in it.
_ALONE = "svg { background: var(--picture-ground); font-family: system-ui, sans-serif }"

_PAGE = """<!doctype html>
<html lang="en" data-theme="{theme}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Pictures</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 720px; margin: 0 auto; padding: 16px;
  background: var(--picture-ground); color: var(--picture-ink) }}
figcaption {{ font-size: 14px }}
{style}
</style>
{body}
</html>
"""


def main() -> None:
    """## Write `light.html`, `dark.html` and each picture by itself"""
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description="Write the pictures of the site.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="*", metavar="PAGE", help="of these pages only")
    args = parser.parse_args()
    start = perf_counter()
    from docs.pictures import pictures, rule_pictures

    loaded = perf_counter()
    groups = {"schedules": list(pictures().values()), **rule_pictures()}
    drawn = perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    style, body = _STYLE.read_text(encoding="utf-8"), ""
    for page, group in groups.items():
        for picture in group:
            alone = picture.svg.replace("<title", f"<style>{style}{_ALONE}</style>\n<title", 1)
            (args.out / f"{picture.name}.svg").write_text(alone, encoding="utf-8")
        if not args.only or page in args.only:
            figures = [f"<figure>{p.svg}<figcaption>{escape(p.caption)}</figcaption></figure>" for p in group]
            body += f'<h2>{page}</h2><div class="pictures">{"".join(figures)}</div>\n'
    for theme in ("light", "dark"):
        (args.out / f"{theme}.html").write_text(_PAGE.format(theme=theme, style=style, body=body), encoding="utf-8")
    size = sum(len(picture.svg) for group in groups.values() for picture in group)
    print(f"imports {loaded - start:.2f} s, runs and drawing {drawn - loaded:.2f} s, {size / 1000:.0f} kB in all")


if __name__ == "__main__":
    main()
