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
HERE = Path(__file__).resolve().parent  # whatever link it is reached by
ROOT = HERE.parent
SUFFIX = EXTENSION_SUFFIXES[0]
MODULES = {
    path.removesuffix(".py").replace("/", "."): ROOT / path
    for path in HERE.joinpath("compiled.txt").read_text("utf-8").split()
}


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
    """Return the extensions and libraries that are there for this interpreter, of whatever sources."""
    extensions = [path for source in MODULES.values() if (path := extension_of(source)).exists()]
    return [*HERE.glob(f"compiled_*__mypyc{SUFFIX}"), *extensions]


@cache
def hot_paths() -> str:
    """Return in which form this process uses the modules: `compiled`, or `interpreted` and in brackets why."""
    why = f"{VARIABLE}=0" if os.environ.get(VARIABLE) == "0" else _unusable()
    return f"interpreted ({why})" if why else COMPILED


def is_due() -> bool:
    """Return whether an installation would compile them: they are not, or of other sources, and a compiler is there."""
    return bool(_unusable()) and _has_compiler()


def _unusable() -> str:
    """Return why what is built cannot be used; "" if it can."""
    if not built():
        return "not built: pip install -v -e . tells why" if _has_compiler() else NO_COMPILER
    library = f"{library_name()}__mypyc"
    extensions = [extension_of(source) for source in MODULES.values()]
    of_these_sources = HERE.joinpath(library + SUFFIX).exists() and all(
        extension.exists() and library.encode() in extension.read_bytes() for extension in extensions
    )
    if not of_these_sources:
        return "the sources have changed since they were compiled: make setup"
    try:
        import_module(f"schemas.{library}")
    except ImportError as error:
        return f"the compiled library cannot be loaded: {error}"
    return ""


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
        if source is None or hot_paths() == COMPILED:
            return None
        return spec_from_file_location(name, source)


def install() -> None:
    """Have the modules found here first. Repeated calls do nothing."""
    if Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)
