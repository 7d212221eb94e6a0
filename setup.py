"""Compiles the hot paths with mypyc, where a C compiler is; without one the package is installed all the same."""

import runpy
import shutil
import warnings
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HOT = runpy.run_path("schemas/compiled.py")
# What is not named is not read: its types would differ with what is installed beside the compiler, and its constants
# would be written into the extensions, whose digest does not cover it.
CACHE = "build/mypy_cache"
OPTIONS = ["--config-file=", f"--cache-dir={CACHE}", "--follow-imports=skip", "--ignore-missing-imports"]


def extensions() -> list[Extension]:
    """Return one extension for each named module and their library; none where mypyc cannot make their C sources."""
    for last in (False, True):
        try:
            made = translated()
        # mypyc ends the process where a source does not compile, and its cache may be damaged or another user's.
        except (Exception, SystemExit) as error:
            if last:
                warnings.warn(f"the hot paths are not compiled ({type(error).__name__}: {error})", stacklevel=1)
            shutil.rmtree(CACHE, ignore_errors=True)
        else:
            for extension in made:
                extension.optional = True
            return made
    return []


def translated() -> list[Extension]:
    """Return the extensions, with their C sources written."""
    from mypyc.build import mypycify

    paths = [str(source.relative_to(HOT["ROOT"])) for source in HOT["MODULES"].values()]
    made: list[Extension] = mypycify(
        [*OPTIONS, *paths], group_name=f"schemas.{HOT['library_name']()}", target_dir="build"
    )
    return made


class Build(build_ext):
    """Builds extensions; in place, those of other sources go."""

    def run(self) -> None:
        """Build them all."""
        in_place = self.inplace or self.editable_mode
        others = HOT["built"]() if in_place else Path(self.build_lib).rglob(f"*{HOT['SUFFIX']}")
        for path in list(others):
            Path(path).unlink()
        super().run()


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
