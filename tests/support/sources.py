"""The product's modules, and what each imports: read from the sources, so that a module no test imports counts."""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


PACKAGES = ("schemas", "producer", "processors", "sink", "ops")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_in(source: str, module: str, is_package: bool, modules: Collection[str] = ()) -> Iterator[str]:
    """Yield the full name of everything a source imports, wherever in it that stands.

    `from package import module` is an import of that module, if it is one of `modules`, and not of the package itself.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join((*above, *filter(None, [node.module])))
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from names
            if not all(name in modules for name in names):
                yield base


SOURCES = sources()


IMPORTS = {
    module: set(imports_in(path.read_text("utf-8"), module, path.name == "__init__.py", SOURCES))
    for module, path in SOURCES.items()
}
