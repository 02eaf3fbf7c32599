"""
---
title: Compiler and cache
summary: From C source to a loaded function, safely, once per machine and user.
---

# Compiler and cache

To load a shared library is to run it. So the folder that libraries are kept in must be the user's own, closed to
everyone else, and must lie where nobody else can put another in its place; otherwise it is not used. A library is
kept with its checksum at the end and is loaded only if that agrees. Files appear by renaming, so any number
of processes may start at once, and one that is killed leaves nothing half written under a name that counts.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

FLAGS = (
    *("-x", "c", "-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=default"),
    # Not -ffast-math: NaN and infinity must behave as in torch. These two only free `sqrt` of its error number
    # and comparisons of their traps; without them nothing is vectorised.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native",
)
COMPILE_SECONDS = 60
_ADVICE = "set OPTIMIZERS_CACHE_DIR to a folder that is yours alone"
STALE_SECONDS = 3600

Bound = TypeVar("Bound")


class NoCompiler(Exception):
    """A kernel can't be had; the message says why and what to do."""


class Kernel:
    """## A compiled kernel: its functions `check` and `step`, of the address of a launch"""

    def __init__(self, library: Any) -> None:
        self.check: Callable[[int], int] = library.check
        self.step: Callable[[int], int] = library.step
        for function in (library.check, library.step):
            function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int


_loaded: dict[str, Any] = {}
# A compiler that failed is not called again at every step, unless the environment has changed.
_failed: dict[tuple[str, ...], str] = {}


def short_name(source: str) -> str:
    """What a kernel is called in reports: a few digits that depend on its source alone."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def load(source: str) -> Kernel:
    """
    ## The kernel of a C source

    Compiled if it isn't in the cache. Raises `NoCompiler`.
    """
    return load_as(source, Kernel)


def load_as(source: str, bind: Callable[[Any], Bound]) -> Bound:
    """
    ### What `bind` makes of the library of a C source

    Raises `NoCompiler`, also where `bind` raises `AttributeError` because the library lacks a function.
    """
    if source not in _loaded:
        environment = (source, *(os.environ.get(name, "") for name in ("CC", "PATH", "OPTIMIZERS_CACHE_DIR")))
        if environment in _failed:
            raise NoCompiler(_failed[environment])
        try:
            _loaded[source] = _find_or_compile(source, bind)
        except NoCompiler as error:
            _failed[environment] = str(error)
            raise
    found: Bound = _loaded[source]
    return found


def _find_or_compile(source: str, bind: Callable[[Any], Bound]) -> Bound:
    compiler = _compiler(os.environ.get("CC", ""), os.environ.get("PATH", ""))
    folder = cache_folder()
    path = folder / f"{_key(source, compiler)}.so"
    if _is_whole(path):
        # What is whole and can't be loaded all the same is made anew.
        with contextlib.suppress(NoCompiler):
            return _open(path, bind)
    _compile(source, compiler, folder, path)
    return _open(path, bind)


def _open(path: Path, bind: Callable[[Any], Bound]) -> Bound:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f"the compiled library can't be loaded: {error}") from error
    try:
        return bind(library)
    except AttributeError as error:
        # While it is open, the loader would give it for whatever is put in its place.
        _ctypes.dlclose(library._handle)
        raise NoCompiler(f"the compiled library can't be loaded: {error}") from error


# ## The compiler


@functools.cache
def _compiler(cc: str, path: str) -> tuple[tuple[str, ...], str]:
    """The compiler's command and what it says it is."""
    try:
        command = shlex.split(cc) if cc else next(([c] for c in ("cc", "gcc", "clang") if shutil.which(c)), [])
    except ValueError as error:
        raise NoCompiler(f"CC={cc!r} is not a command ({error}): set CC to one that is") from None
    if not command:
        raise NoCompiler("no C compiler was found: install gcc or clang, or set CC")
    try:
        answer = _run([*command, "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        raise NoCompiler(
            f"the C compiler {shlex.join(command)!r} can't be run ({error}): set CC to one that can"
        ) from None
    if answer.returncode != 0:
        raise NoCompiler(f"{shlex.join(command)!r} is not a C compiler: set CC to one")
    return tuple(command), answer.stdout


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    return subprocess.run(command, input=text, timeout=COMPILE_SECONDS, **options)


def _key(source: str, compiler: tuple[tuple[str, ...], str]) -> str:
    parts = (source, *FLAGS, *compiler[0], compiler[1], platform.system(), platform.machine(), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "".join(x for x in lines if x.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part"))


def _compile(source: str, compiler: tuple[tuple[str, ...], str], folder: Path, path: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NoCompiler(f"the kernel cache {folder} can't be written: {_ADVICE}")
    _sweep(folder)
    try:
        with tempfile.TemporaryDirectory(prefix="compiling-", dir=folder) as work:
            made = Path(work) / "kernel.so"
            # The source goes by standard input, so that no name of a file gets into the library.
            command = [*compiler[0], *FLAGS, "-", "-o", str(made), "-lm"]
            result = _run(command, source)
            if result.returncode != 0 or not made.exists():
                raise NoCompiler(f"the C compiler failed ({shlex.join(compiler[0])}): {result.stderr.strip()[:2000]}")
            library = made.read_bytes()
            made.write_bytes(library + hashlib.sha256(library).digest())
            made.chmod(0o700)
            os.replace(made, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoCompiler(f"a kernel can't be compiled into {folder}: {error}") from error


def _sweep(folder: Path) -> None:
    """Remove what killed compilers left behind."""
    for left in folder.glob("compiling-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


# ## The cache


def _is_whole(path: Path) -> bool:
    """Whether the library at `path` is ours and as it was written."""
    try:
        if not _is_private(os.lstat(path), stat.S_ISREG):
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]


def cache_folder() -> Path:
    """
    ### The folder of the compiled kernels

    `OPTIMIZERS_CACHE_DIR`, or the user's cache folder. Raises `NoCompiler` where it can't be made or isn't safe.
    """
    default = platformdirs.user_cache_dir("literate-optimizers", appauthor=False)
    asked = Path(os.path.abspath(os.environ.get("OPTIMIZERS_CACHE_DIR") or default)) / "kernels"
    if not hasattr(os, "geteuid"):
        raise NoCompiler("kernels are compiled on Linux and macOS only, where it can be told whose a folder is")
    try:
        _make_private(asked)
        # From here on no link is followed that somebody could turn elsewhere.
        folder = asked.resolve()
        if not (_is_private(os.lstat(asked), stat.S_ISDIR) and _is_private(os.lstat(folder), stat.S_ISDIR)):
            raise NoCompiler(f"the kernel cache {folder} may be written by others, or is not yours: {_ADVICE}")
        unsafe = next((parent for parent in folder.parents if _others_may_replace(parent)), None)
        if unsafe is not None:
            raise NoCompiler(f"the kernel cache {folder} lies in {unsafe}, which others may write to: {_ADVICE}")
    except OSError as error:
        raise NoCompiler(f"the kernel cache {asked} can't be made ({error}): {_ADVICE}") from error
    return folder


def _make_private(folder: Path) -> None:
    """Make a folder and the ones that it lies in, all closed to others whatever the umask is."""
    if not folder.is_dir():
        _make_private(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _is_private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _others_may_replace(folder: Path) -> bool:
    """Whether another user could rename what lies in `folder`. The sticky bit, as on /tmp, prevents it."""
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        return True
    if status.st_mode & stat.S_ISVTX:
        return False
    return bool(status.st_mode & 0o002) or (bool(status.st_mode & 0o020) and not _is_own_group(status.st_gid))


def _is_own_group(gid: int) -> bool:
    """Whether a group is the user's private one, as many systems make for each user."""
    import grp
    import pwd

    try:
        return grp.getgrgid(gid).gr_name == pwd.getpwuid(os.geteuid()).pw_name and not grp.getgrgid(gid).gr_mem
    except KeyError:
        return False


# ## Threads


@functools.cache
def openmp() -> tuple[int, int, int] | None:
    """
    The addresses of `GOMP_parallel`, `omp_get_thread_num` and `omp_get_num_threads` of the OpenMP runtime that torch
    itself uses, or None. A second runtime would have a second pool of threads spin on the same cores.
    """
    import torch

    try:
        # The symbols of a library are looked up in what it depends on, too.
        library = ctypes.CDLL(torch._C.__file__)
        found: list[Any] = [library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads]
    except (OSError, AttributeError):
        return None
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found]
    return addresses[0], addresses[1], addresses[2]
