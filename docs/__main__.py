"""
python -m docs build [--out DIR]      build the site
python -m docs serve [--port PORT]    build it, show it, and build it again whenever a source changes
python -m docs check                  check that the lines of every rule are the formulas above them
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs", description="The site of the library.")
    commands = parser.add_subparsers(dest="command", required=True)
    default = Path(__file__).parent / "_site"
    build_parser = commands.add_parser("build", help="build the site")
    serve_parser = commands.add_parser("serve", help="build the site, show it, and build it again on changes")
    commands.add_parser("check", help="check that the lines of every rule are the formulas above them")
    for each in (build_parser, serve_parser):
        each.add_argument("--out", type=Path, default=default, metavar="DIR", help="(default: docs/_site)")
    serve_parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.command == "check":
        from docs.formulas.check import main as check

        return check()
    if args.command == "serve":
        from docs.site.serve import serve

        return serve(args.out, args.port)
    from docs.site.build import build
    from docs.site.source import SiteError

    began = time.perf_counter()
    # A build makes much and lets go of nothing: looking for garbage only costs time.
    gc.disable()
    try:
        pages = build(args.out)
    except (SiteError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{pages} pages in {args.out} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
