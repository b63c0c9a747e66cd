"""Which parts a stage uses, nested ones included, and a digest of the code of each, by which an edit without a new version is noticed."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rtbench import keys
from rtbench.parts.kinds import knobs
from rtbench.parts.knobs import decode
from rtbench.planning.plan import Stage
from rtbench.plugins import OWN, Catalogue, Part

KINDS = {"init": "architecture", "train": "trainer", "prune": "pruner", "probe": "probe"}
"""What kind of part a stage of each verb calls; the others call none."""
LENGTH = 16
"""Hexadecimal digits of a digest: nobody forges one, they only have to differ."""


def used(stages: Iterable[Stage], catalogue: Catalogue) -> dict[str, Part]:
    """Every part that these stages use, by kind and name, "pruner magnitude"."""
    found: dict[str, Part] = {}
    seen = set[int]()  # stages of one plan share their resolved parts
    for stage in stages:
        for kind, resolved in ((KINDS.get(stage.verb), stage.part), ("architecture", stage.net), ("dataset", stage.data)):
            if kind and id(resolved) not in seen:
                seen.add(id(resolved))
                found.update({f"{kind} {name}": catalogue.get(kind, name) for kind, name in named(kind, resolved, catalogue)})
    return found


def named(kind: str, resolved: dict[str, Any], catalogue: Catalogue) -> list[tuple[str, str]]:
    """Kind and name of a resolved part and of those nested in it; what is nested in a part that is not here cannot be told."""
    found: list[tuple[str, str]] = []

    def visit(kind: str, resolved: dict[str, Any]) -> None:
        found.append((kind, resolved["use"]))
        if part := catalogue.parts.get((kind, resolved["use"])):
            for name, knob in knobs(kind, part.function).items():
                decode(knob.annotation, resolved["knobs"][name], visit)

    visit(kind, resolved)
    return found


def digests(parts: Mapping[str, Part]) -> dict[str, str]:
    """A digest of each part's code as it is on disk now; none for a part whose code lies in no file.

    Of a part that comes with rtbench it is the module with its function, of another one that with its plugin's hooks; and whatever
    that imports of the same package. Comments, docstrings and layout do not count.
    """
    read: dict[str, tuple[str, set[str]]] = {}
    found = {}
    for name, part in parts.items():
        root = part.function.__module__ if part.owner == OWN else part.module
        package = ".".join(root.split(".")[: 3 if part.owner == OWN else 1])
        modules, todo = set[str](), {root}
        while todo:
            module = todo.pop()
            if module not in read:
                read[module] = _read(module, package)
            modules.add(module)
            todo |= read[module][1] - modules
        texts = [text for text, _ in map(read.__getitem__, sorted(modules)) if text]
        if texts:
            found[name] = keys.digest("\n".join(texts).encode())[:LENGTH]
    return found


def _read(module: str, package: str) -> tuple[str, set[str]]:
    """What the code of a module says, and the modules of the package that it imports; "" where there is no file to read."""
    file = _file(module)
    if file is None:
        return "", set()
    stat = file.stat()
    text, imported = _parsed(file, module, stat.st_mtime_ns, stat.st_size)
    return text, {name for name in imported if name == package or name.startswith(f"{package}.")}


@functools.lru_cache(maxsize=1024)
def _parsed(file: Path, module: str, changed: int, size: int) -> tuple[str, frozenset[str]]:
    """What the code in a file says, and what it imports; read again when it was written to, as when it changed and its size say."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled, or edited into something that cannot be imported any more
        return keys.digest(content), frozenset()
    return _plain(tree), frozenset(_imports(tree, module if file.name == "__init__.py" else module.rpartition(".")[0]))


def _file(module: str) -> Path | None:
    """Where a module lies, found without importing it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    package, _, rest = module.partition(".")
    places = [Path(folder, *rest.split(".")) for folder in getattr(sys.modules.get(package), "__path__", ()) if rest]
    files = [Path(loaded)] if loaded else [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.AST, beside: str) -> Iterator[str]:
    """The modules that a module imports, those inside functions too. beside: the package that it is in, or is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (beside or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), beside) if node.level else str(node.module)
            names = [f"{base}.{alias.name}" for alias in node.names]
            inner = [name for name in names if base.split(".")[0] == beside.split(".")[0] and _file(name)]
            yield from inner
            if len(inner) < len(names):
                yield base


def _plain(node: Any) -> str:
    """A syntax tree as text, the same on every Python: no positions, no docstrings, nothing that is empty."""
    if isinstance(node, list):
        return f"[{','.join(_plain(item) for item in node if not _text(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name in node._fields if name != "ctx" and (value := getattr(node, name, None)) is not None and value != []}
    return f"{type(node).__name__}({','.join(f'{name}={_plain(value)}' for name, value in fields.items())})"


def _text(node: Any) -> bool:
    """Whether a statement is a text alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
