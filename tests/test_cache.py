"""
The cache of kernels: it hands the process to nobody, it takes no damaged library, and whatever is wrong with the
folder, the compiler or the library, the step still happens.
"""

import ctypes
import errno
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from optimizers import SGD
from optimizers.engines import compiler

ROOT = Path(__file__).parent.parent
STRANGER = 54321
#: The kernel of a rule, and the look at its tensors.
LIBRARIES = 2
COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="owners and modes of files are those of POSIX"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine"),
]
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no kernel loaded, no `CC`. Gives the folder where libraries will lie."""
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    # What the module remembers within a process, whatever it is.
    for name, memory in list(vars(compiler).items()):
        if isinstance(memory, (dict, set)) and not name.startswith("__"):
            monkeypatch.setattr(compiler, name, type(memory)())
    compiler._compiler.cache_clear()
    yield tmp_path / "cache" / "kernels"
    compiler._compiler.cache_clear()


def steps(**kwargs):
    """Two steps of a rule that is exact in a kernel: the parameter, and the line of the report."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12))
    optimizer = SGD([p], lr=0.3, weight_decay=0.1, **kwargs)
    for number in (1, 2):
        p.grad = torch.linspace(0.5, -0.2, 12) * number
        optimizer.step()
    (entry,) = optimizer.explain().entries
    return p.detach(), entry


def assert_fused():
    result, entry = steps(fused=True)
    assert entry.reader == "fused"
    assert torch.equal(result, steps(foreach=False, fused=False)[0])


def assert_falls_back(reason, advice):
    """The step happens by `foreach`, the report says why, and `fused=True` is an error that says what to do."""
    result, entry = steps()
    assert torch.equal(result, steps(foreach=False, fused=False)[0])
    assert entry.reader == "foreach"
    assert re.search(reason, entry.reason)
    with pytest.raises(RuntimeError, match=f"fused=True can't be had: .*{reason}") as caught:
        steps(fused=True)
    assert advice in str(caught.value)


def libraries(folder):
    return sorted(p.name for p in folder.glob("*.so"))


def script(path, text):
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(0o755)
    return str(path)


def wrapper(tmp_path, name="logging-cc"):
    """A compiler that notes each call but those for its version."""
    log = tmp_path / f"{name}.log"
    log.touch()
    cc = script(
        tmp_path / name,
        f"""
        case "$*" in *--version*) ;; *) echo call >> '{log}' ;; esac
        exec {shutil.which(COMPILER)} "$@"
        """,
    )
    return cc, log


PROGRAM = """
import sys, torch
from optimizers import SGD
p = torch.nn.Parameter(torch.linspace(-1, 1, 12))
optimizer = SGD([p], lr=0.3, weight_decay=0.1)
print("ready", flush=True)
sys.stdin.readline()
for number in (1, 2):
    p.grad = torch.linspace(0.5, -0.2, 12) * number
    optimizer.step()
print(optimizer.explain().entries[0].reader, p.detach().view(torch.int32).tolist())
"""


def start(program=PROGRAM, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def finish(process):
    """Let a process that is ready go on, and give its last line."""
    out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    return out.splitlines()[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The libraries of the program above, as a process made them: their bytes by name."""
    folder = tmp_path_factory.mktemp("made")
    finish(start(OPTIMIZERS_CACHE_DIR=str(folder)))
    found = {library.name: library.read_bytes() for library in (folder / "kernels").glob("*.so")}
    assert len(found) == LIBRARIES
    return found


def put(cache, files):
    """Files in the cache; gives their paths."""
    cache.mkdir(parents=True, mode=0o700)
    for name, content in files.items():
        (cache / name).write_bytes(content)
        (cache / name).chmod(0o700)
    return [cache / name for name in files]


def contents(cache):
    """What lies in the cache, by name."""
    return {path.name: path.read_bytes() for path in cache.iterdir()}


# ## The folder


@pytest.fixture
def umask():
    """Sets the mask of new files, and puts it back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000], ids=oct)
def test_folder_is_closed_to_others_whatever_the_umask(cache, umask, mask):
    cache.parent.mkdir()
    umask(mask)
    assert_fused()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert [(cache / name).stat().st_mode & 0o777 for name in libraries(cache)] == [0o700] * LIBRARIES


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o000], ids=oct)
def test_folders_made_on_the_way_are_not_open_to_others(cache, tmp_path, monkeypatch, umask, mask):
    """Otherwise the cache would be refused for what it has itself made."""
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(compiler, "_is_own_group", lambda gid: False)
    umask(mask)
    assert_fused()
    assert not ((tmp_path / "a").stat().st_mode | (tmp_path / "a" / "b").stat().st_mode) & 0o022


def test_compiling_leaves_the_libraries_and_nothing_else(cache):
    assert_fused()
    assert sorted(p.name for p in cache.iterdir()) == libraries(cache)
    assert [p.name for p in cache.parent.iterdir()] == ["kernels"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_folder_that_others_may_write_to_is_refused(cache, mode):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert_falls_back("may be written by others", "set OPTIMIZERS_CACHE_DIR to a folder that is yours alone")
    assert list(cache.iterdir()) == []


def test_folder_that_others_may_read_is_used(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o755)
    assert_fused()


@pytest.mark.parametrize("mode", [0o777, 0o707])
@pytest.mark.parametrize("depth", [1, 2])
def test_folder_that_lies_where_others_may_write_is_refused(cache, tmp_path, monkeypatch, mode, depth):
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(mode)
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(place / "/".join("abc"[:depth])))
    assert_falls_back(f"lies in {place}, which others may write to", "set OPTIMIZERS_CACHE_DIR")


def test_folder_that_lies_where_others_may_write_but_not_rename_is_used(tmp_path, monkeypatch):
    place = tmp_path / "sticky"
    place.mkdir()
    place.chmod(0o1777)
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(place / "mine"))
    assert_fused()


@as_root
def test_folder_of_someone_else_is_refused(cache):
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, STRANGER, -1)
    assert_falls_back("is not yours", "set OPTIMIZERS_CACHE_DIR")


def test_folder_of_another_user_is_refused(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert_falls_back("is not yours", "set OPTIMIZERS_CACHE_DIR")


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_folder_that_lies_in_one_of_someone_else_is_refused(tmp_path, monkeypatch, mode):
    place = tmp_path / "theirs"
    place.mkdir()
    place.chmod(mode)
    os.chown(place, STRANGER, -1)
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(place / "mine"))
    assert_falls_back(f"lies in {place}", "set OPTIMIZERS_CACHE_DIR")


@as_root
def test_folder_that_lies_in_one_of_another_group_is_refused(tmp_path, monkeypatch):
    place = tmp_path / "groups"
    place.mkdir()
    os.chown(place, -1, STRANGER)
    place.chmod(0o775)
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(place / "mine"))
    assert_falls_back(f"lies in {place}", "set OPTIMIZERS_CACHE_DIR")


def test_folder_that_is_a_link_is_refused(cache, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert_falls_back("not yours", "set OPTIMIZERS_CACHE_DIR")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_home_that_is_a_link_is_used(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(tmp_path / "home" / "cache"))
    assert_fused()
    assert len(libraries(tmp_path / "disk" / "cache" / "kernels")) == LIBRARIES


def test_link_that_others_may_replace_is_not_followed_twice(tmp_path, monkeypatch):
    """The link may be another when the library is loaded. So it is refused, or resolved once and for all."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    (tmp_path / "mine").mkdir(mode=0o700)
    (place / "link").symlink_to(tmp_path / "mine")
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(place / "link"))
    try:
        folder = compiler.cache_folder()
    except compiler.NoCompiler:
        return
    assert folder == folder.resolve()


def test_folder_that_is_a_file_is_refused(cache):
    cache.parent.mkdir()
    cache.write_text("")
    assert_falls_back("can't be made|not yours", "set OPTIMIZERS_CACHE_DIR")


def test_folder_below_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert_falls_back("can't be made", "set OPTIMIZERS_CACHE_DIR")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_folder_where_nothing_can_be_made_is_refused(monkeypatch):
    monkeypatch.setenv("OPTIMIZERS_CACHE_DIR", "/proc/optimizers")
    assert_falls_back("can't be made", "set OPTIMIZERS_CACHE_DIR")


def test_folder_that_cannot_be_written_is_refused(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache and access(path, mode))
    assert_falls_back("can't be written", "set OPTIMIZERS_CACHE_DIR")


def test_library_in_a_folder_that_cannot_be_written_is_still_loaded(cache, made, monkeypatch):
    """A home that is read-only may have been filled before."""
    put(cache, made)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != cache and access(path, mode))
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("nothing needs to be compiled"))
    assert_fused()


def test_default_folder_is_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTIMIZERS_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tmp_path in compiler.cache_folder().parents
    assert "literate-optimizers" in str(compiler.cache_folder())


def test_system_without_owners_steps_by_the_next_reader(monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    result, entry = steps()
    assert entry.reader == "foreach"
    assert torch.equal(result, steps(foreach=False, fused=False)[0])


# ## The library


def _truncated(content):
    return content[: len(content) // 2]


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _last_flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def _without_checksum(content):
    return content[:-32]


def _appended(content):
    return content + b"\0"


def _empty(content):
    return b""


def _checksum_alone(content):
    return content[-32:]


DAMAGES = [_truncated, _flipped, _last_flipped, _without_checksum, _appended, _empty, _checksum_alone]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__.strip("_"))
def test_damaged_library_is_compiled_again(cache, made, damage):
    paths = put(cache, {name: damage(content) for name, content in made.items()})
    assert_fused()
    assert all(map(compiler._is_whole, paths))
    assert contents(cache) == made


def test_whole_library_is_not_compiled_again(cache, made, monkeypatch):
    before = [path.stat() for path in put(cache, made)]
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("a whole library lies in the cache"))
    assert_fused()
    after = [(cache / name).stat() for name in made]
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [(s.st_ino, s.st_mtime_ns) for s in before]


@as_root
def test_library_of_someone_else_is_compiled_again(cache, made):
    for path in put(cache, made):
        os.chown(path, STRANGER, -1)
    assert_fused()
    assert {path.stat().st_uid for path in cache.iterdir()} == {os.geteuid()}


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_library_that_others_may_write_to_is_compiled_again(cache, made, mode):
    for path in put(cache, made):
        path.chmod(mode)
    assert_fused()
    assert {path.stat().st_mode & 0o777 for path in cache.iterdir()} == {0o700}


def test_library_that_is_a_link_is_compiled_again(cache, made, tmp_path):
    elsewhere = put(tmp_path / "elsewhere", made)
    cache.mkdir(parents=True, mode=0o700)
    for path in elsewhere:
        (cache / path.name).symlink_to(path)
    assert_fused()
    assert not any(path.is_symlink() for path in cache.iterdir())
    assert contents(tmp_path / "elsewhere") == made


def test_library_that_is_a_folder_does_no_harm(cache, made):
    for name in made:
        (cache / name / "full").mkdir(parents=True)
    cache.chmod(0o700)
    assert_falls_back("can't be compiled into", "")


def _signed(content):
    return content + hashlib.sha256(content).digest()


def test_whole_file_that_is_no_library_is_compiled_again(cache, made):
    """A compiler that was broken for a while has made it; it must not be in the way for good."""
    put(cache, dict.fromkeys(made, _signed(b"not a library" * 10)))
    assert_fused()
    assert contents(cache) == made


def test_whole_library_without_the_functions_is_compiled_again(cache, made, tmp_path):
    other = tmp_path / "other.so"
    subprocess.run([COMPILER, "-shared", "-x", "c", "-", "-o", other], input=b"int other;", check=True)
    put(cache, dict.fromkeys(made, _signed(other.read_bytes())))
    assert_fused()
    assert contents(cache) == made


def test_library_that_cannot_be_loaded_leaves_the_step_to_the_next_reader(monkeypatch):
    def refuse(path, *args, **kwargs):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert_falls_back("failed to map segment", "Leave `fused` out")


# ## Names


def key_of(source="int x;", command=("cc",), version="cc 1"):
    return compiler._key(source, (tuple(command), version))


def test_name_depends_on_everything_that_the_library_depends_on(monkeypatch):
    keys = [
        key_of(),
        key_of(source="int y;"),
        key_of(command=("gcc",)),
        key_of(command=("cc", "-O0")),
        key_of(version="cc 2"),
    ]
    for target, name, value in (
        (compiler, "_processor", lambda: "another"),
        (compiler, "FLAGS", (*compiler.FLAGS, "-O1")),
        (compiler.platform, "machine", lambda: "riscv128"),
        (compiler.platform, "system", lambda: "Plan 9"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(target, name, value)
            keys.append(key_of())
    assert len(set(keys)) == len(keys)
    assert key_of() == keys[0]


def test_another_processor_compiles_a_library_of_its_own(cache, made, monkeypatch):
    put(cache, made)
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert_fused()
    assert len(libraries(cache)) == 2 * LIBRARIES


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo on this system")
def test_processor_is_told_by_its_features():
    assert "flags" in compiler._processor() or "Features" in compiler._processor()


# ## The compiler


def test_no_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_falls_back("no C compiler was found", "install gcc or clang, or set CC")


def test_compiler_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path / "missing"))
    assert_falls_back("can't be run", "set CC to one")


def test_compiler_that_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path))
    assert_falls_back("can't be run", "set CC to one")


@pytest.mark.parametrize("value", ["gcc '", 'gcc "-O2', "gcc \\"])
def test_compiler_with_an_open_quote(monkeypatch, value):
    monkeypatch.setenv("CC", value)
    assert_falls_back("CC|C compiler", "CC")


def test_empty_name_of_a_compiler_means_the_usual_one(monkeypatch):
    monkeypatch.setenv("CC", "")
    assert_fused()


def test_compiler_with_arguments_is_taken_apart(monkeypatch):
    monkeypatch.setenv("CC", f"{shutil.which(COMPILER)} -O2 -DUNUSED='a b'")
    assert_fused()


def test_program_that_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CC", shutil.which("false"))
    assert_falls_back("is not a C compiler", "set CC to one")


def test_program_that_answers_but_makes_nothing(cache, monkeypatch):
    monkeypatch.setenv("CC", shutil.which("true"))
    assert_falls_back("the C compiler failed", "Leave `fused` out")
    assert list(cache.iterdir()) == []


BROKEN = {
    "fails": ("echo 'fatal error: out of luck' >&2; exit 1", "out of luck"),
    "is killed": ("kill -9 $$", "the C compiler failed"),
    "prints garbage": (r"printf '\377\376\000garbage' >&2; printf '\377\376'; exit 1", "the C compiler failed"),
    "prints garbage and makes nothing": (r"printf '\377\376\000garbage'; exit 0", "the C compiler failed"),
    "closes its ears": ("exec <&-; exit 1", "the C compiler failed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_compiler_that_fails(cache, tmp_path, monkeypatch, name):
    text, reason = BROKEN[name]
    cc = script(tmp_path / "broken", f'case "$*" in *--version*) echo broken 1; exit 0 ;; esac\n{text}')
    monkeypatch.setenv("CC", cc)
    assert_falls_back(reason, "Leave `fused` out")
    assert list(cache.iterdir()) == []


def test_compiler_whose_version_is_garbage(tmp_path, monkeypatch):
    cc = script(
        tmp_path / "odd",
        rf"""
        case "$*" in *--version*) printf '\377\376\000\n'; printf '\377' >&2; exit 0 ;; esac
        exec {shutil.which(COMPILER)} "$@"
        """,
    )
    monkeypatch.setenv("CC", cc)
    result, entry = steps()
    assert torch.equal(result, steps(foreach=False, fused=False)[0])
    assert entry.reader == "fused" or "C compiler" in entry.reason


@pytest.mark.parametrize(
    "makes", ["printf garbage > {out}", ": > {out}", "echo 'int other;' | {cc} -shared -x c - -o {out}"]
)
def test_compiler_that_makes_something_else(cache, tmp_path, monkeypatch, makes):
    text = makes.format(out='"$out"', cc=shutil.which(COMPILER))
    cc = script(
        tmp_path / "other",
        f"""
        case "$*" in *--version*) echo other 1; exit 0 ;; esac
        for word; do [ "$last" = -o ] && out=$word; last=$word; done
        {text}
        """,
    )
    monkeypatch.setenv("CC", cc)
    result, entry = steps()
    assert entry.reader == "foreach"
    assert torch.equal(result, steps(foreach=False, fused=False)[0])
    assert entry.reason
    monkeypatch.setattr(compiler, "_loaded", {})
    with pytest.raises(RuntimeError, match="fused=True can't be had"):
        steps(fused=True)


def test_compiler_that_takes_too_long(cache, tmp_path, monkeypatch):
    cc = script(tmp_path / "slow", 'case "$*" in *--version*) echo slow 1; exit 0 ;; esac\nexec sleep 600')
    monkeypatch.setenv("CC", cc)
    compiler._compiler(cc, os.environ["PATH"])
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.2)
    assert_falls_back("timed out", "Leave `fused` out")
    assert list(cache.iterdir()) == []


def test_compiler_that_fails_is_not_called_again_at_each_step(tmp_path, monkeypatch, caplog):
    log = tmp_path / "log"
    cc = script(
        tmp_path / "fails", f"case \"$*\" in *--version*) echo fails 1; exit 0 ;; esac\necho call >> '{log}'\nexit 1"
    )
    monkeypatch.setenv("CC", cc)
    ps = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = SGD(ps, lr=0.1)
    with caplog.at_level(logging.WARNING, logger="optimizers"):
        for number in range(8):
            ps[0].grad, ps[1].grad = torch.ones(3), None if number % 2 else torch.ones(3)
            optimizer.step()
    assert len(caplog.records) == 1
    assert log.read_text().splitlines() == ["call"]


def test_full_disk(cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert_falls_back("No space left on device", "Leave `fused` out")
    assert list(cache.iterdir()) == []


def test_full_disk_where_the_folder_of_a_compile_is_made(cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiler.tempfile, "TemporaryDirectory", full)
    assert_falls_back("No space left on device", "Leave `fused` out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_disk_that_fills_while_a_library_is_written(cache, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: write(Path("/dev/full"), data))
    assert_falls_back("No space left on device", "Leave `fused` out")
    assert libraries(cache) == []


def test_source_beyond_ascii_is_compiled_where_the_system_speaks_ascii(tmp_path):
    page = tmp_path / "page.py"
    page.write_text(
        "from optimizers import GenericAdaptiveOptimizer\n"
        "class R(GenericAdaptiveOptimizer):\n"
        "    def step_param(self, state, group, grad, param):\n"
        "        param.sub_(grad, alpha=group['lr'])  # θ ← θ - α g\n",
        encoding="utf-8",
    )
    program = (
        f"import sys, torch; sys.path.insert(0, {str(tmp_path)!r}); from page import R\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "o = R([p], {}, lr=0.5); o.step(); assert p.tolist() == [0.5] * 3; print(o.explain().entries[0].reader)"
    )
    assert finish(start(program, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")) == "fused"


# ## Processes


def test_second_process_compiles_nothing(cache, tmp_path):
    cc, log = wrapper(tmp_path)
    first = finish(start(CC=cc))
    assert log.read_text().splitlines() == ["call"] * LIBRARIES
    assert first.startswith("fused ")
    assert finish(start(CC=cc)) == first
    assert log.read_text().splitlines() == ["call"] * LIBRARIES
    assert len(libraries(cache)) == LIBRARIES


@pytest.mark.slow
def test_many_processes_that_start_at_once_agree_and_leave_one_library_of_each(cache):
    """Each is held until all have loaded torch; all that is left to them is to compile and to step."""
    processes = [start() for _ in range(8)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    lines = {finish(process) for process in processes}
    assert len(lines) == 1
    assert lines.pop().startswith("fused ")
    assert len(libraries(cache)) == LIBRARIES
    assert sorted(p.name for p in cache.iterdir()) == libraries(cache)
    assert all(map(compiler._is_whole, cache.iterdir()))


def test_killed_compile_is_in_nobodys_way_and_swept_after_an_hour(cache, tmp_path):
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    cc = script(
        tmp_path / "endless",
        f"case \"$*\" in *--version*) echo endless 1; exit 0 ;; esac\necho > '{begun}'\nexec sleep 600",
    )
    process = start(CC=cc)
    process.stdin.write("\n")
    process.stdin.flush()
    begun.read_text()  # Returns once the compiler has begun.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (left,) = cache.iterdir()
    assert left.name.startswith("compiling-")

    assert_fused()
    assert len(libraries(cache)) == LIBRARIES
    assert left.exists()  # It might still be at work.

    os.utime(left, (time.time() - 3700,) * 2)
    fresh, odd = cache / "compiling-fresh", cache / "kept"
    fresh.mkdir()
    odd.mkdir()
    os.utime(odd, (time.time() - 3700,) * 2)
    (cache / libraries(cache)[0]).unlink()
    compiler._loaded.clear()
    assert_fused()
    assert not left.exists()
    assert fresh.exists()
    assert odd.exists()


def test_stale_folder_that_cannot_be_removed_is_no_obstacle(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    left = cache / "compiling-old"
    left.mkdir()
    os.utime(left, (0, 0))
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, *a, **k: None if Path(path) == left else rmtree(path, *a, **k))
    assert_fused()


def test_loaded_kernel_outlives_its_file(cache):
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([p], lr=0.5, fused=True)
    for left in (0.5, 0.0, -0.5):
        p.grad = torch.ones(4)
        optimizer.step()
        assert p.tolist() == [left] * 4
        shutil.rmtree(cache, ignore_errors=True)
