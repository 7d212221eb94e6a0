"""Hot paths, compiled: which form of the modules of `compiled.txt` this process uses, and why.

mypyc makes extensions of these modules from the same source (`setup.py`), where a C compiler is. All of them are used,
or none. A library carries the digest of the sources that it was made of in its name, and each module's extension names
its library, so what was made of other sources is never imported: the finder here returns the source instead. It is
installed by `schemas/__init__.py`, which each package that has such modules imports before any of them can be imported.

Standard library only, and no other module of ours: `setup.py` reads it before anything is installed.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

VARIABLE = "CRM_REPLAY_COMPILED"
COMPILED = "compiled"
NO_COMPILER = "no C compiler: install gcc and Python's headers"
INSTALL_LOUDLY = "pip install -v -e . tells why"
ELF_HEADER_BYTES = 64
ELF_SECTIONS = ((40, 48), (58, 60), (60, 62))  # in the header: offset, size of an entry, number of entries
HERE = Path(__file__).resolve().parent  # whatever link it is reached by
ROOT = HERE.parent
SUFFIX = EXTENSION_SUFFIXES[0]
MODULES = {
    path.removesuffix(".py").replace("/", "."): ROOT / path
    for path in HERE.joinpath("compiled.txt").read_text("utf-8").split()
}


PACKAGES = {name.partition(".")[0] for name in MODULES}


def library_name() -> str:
    """Return the name of the library that is made of today's sources, without mypyc's ending."""
    digest = sha256(repr(sorted(MODULES)).encode())
    for _, source in sorted(MODULES.items()):
        digest.update(sha256(source.read_bytes()).digest())
    return f"compiled_{digest.hexdigest()[:16]}"


def extension_of(source: Path) -> Path:
    """Return where the extension of a module is, beside its source."""
    return source.with_name(source.stem + SUFFIX)


def built() -> list[Path]:
    """Return the extensions and libraries that are there for this interpreter, of whatever sources and modules."""
    packages = [package.parent for package in ROOT.glob("*/__init__.py")]
    return [path for package in packages for path in package.rglob(f"*{SUFFIX}")]


@cache
def hot_paths() -> str:
    """Return in which form this process uses the modules: `compiled`, or `interpreted` and in brackets why."""
    asked = os.environ.get(VARIABLE, "")
    why = _unusable() if asked in ("", "1") else f"{VARIABLE}={asked}"
    return f"interpreted ({why})" if why else COMPILED


def is_due() -> bool:
    """Return whether an installation would compile them: they are not, or of other sources, and a compiler is there."""
    return bool(_unusable()) and _has_compiler()


def _unusable() -> str:
    """Return why what is built cannot be used; "" if it can."""
    name = f"{library_name()}__mypyc"
    library = HERE / (name + SUFFIX)
    extensions = [extension_of(source) for source in MODULES.values()]
    try:
        there = [extension.read_bytes() for extension in extensions if extension.exists()]
        if not there:
            return f"not built: {INSTALL_LOUDLY}" if _has_compiler() else NO_COMPILER
        if len(there) < len(extensions) or not all(name.encode() in extension for extension in there):
            to_do = "make setup" if _has_compiler() else NO_COMPILER
            return f"the sources have changed since they were compiled: {to_do}"
        if not library.exists():
            return f"the compiled library is missing: {INSTALL_LOUDLY}"
        # A process that maps a file which was cut short dies by a signal.
        if not all(map(_is_whole, there, map(len, there))) or not _is_whole(_header(library), library.stat().st_size):
            return "a compiled file is not complete: make clean setup"
    except OSError as error:
        return f"the compiled files cannot be read: {error}"
    try:
        import_module(f"schemas.{name}")
    except ImportError as error:
        return f"the compiled library cannot be loaded: {error}"
    return ""


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(ELF_HEADER_BYTES)


def _is_whole(begin: bytes, size: int) -> bool:
    """Return whether an ELF file of so many bytes, that begins like this, has its last part: its table of sections.

    Files of other kinds of systems are taken as they are.
    """
    if not begin.startswith(b"\x7fELF\x02"):  # of 64 bits
        return not begin.startswith(b"\x7fELF") and size > 0
    if len(begin) < ELF_HEADER_BYTES:
        return False
    offset, entry_bytes, entries = (int.from_bytes(begin[at:end], sys.byteorder) for at, end in ELF_SECTIONS)
    return size >= offset + entry_bytes * entries


def _has_compiler() -> bool:
    command = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(command) is not None and Path(sysconfig.get_paths()["include"], "Python.h").exists()


class Finder:
    """Finds the sources of the modules where their extensions may not be used; else leaves them to Python's finders."""

    @staticmethod
    def find_spec(
        name: str,
        _path: Sequence[str] | None = None,
        _target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return where to load a module from."""
        source = MODULES.get(name)
        if source is None:
            # One that was compiled, and is no longer named: Python would prefer its extension to its source.
            source = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            is_left_over = name.partition(".")[0] in PACKAGES and extension_of(source).exists() and source.exists()
            return spec_from_file_location(name, source) if is_left_over else None
        return None if hot_paths() == COMPILED else spec_from_file_location(name, source)


def install() -> None:
    """Have the modules found here first. Repeated calls do nothing."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
