"""Plugins: built-ins, entry points and `--plugin` files, loaded one at a time, and the catalogue of parts they give.

A plugin that fails to import or to validate is set aside with one sentence; using a part of it is then an error, anything else runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from rtbench import hookspecs
from rtbench.errors import UserError, unknown
from rtbench.parts.kinds import VOCABULARY, validate

BUILTINS = ("datasets", "architectures", "attacks", "objectives", "trainers", "pruners", "probes", "reports")
GROUP = "rtbench"
OWN = "rtbench"
"""The owner of the parts that come with it."""
API = 1
"""The plugin interface's version. A plugin may say which it was written for: `RTBENCH_API = 1`."""


@dataclass(frozen=True)
class Part:
    """One named function, its kind, the distribution and version it comes from, and the module with that plugin's hooks."""

    kind: str
    name: str
    function: Callable[..., Any]
    owner: str
    owner_version: str
    module: str = ""


@dataclass
class Catalogue:
    """Every part found, the plugins that were set aside with the reason, and the manager that sends events."""

    manager: pluggy.PluginManager
    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)
    clashes: dict[tuple[str, str], str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def get(self, kind: str, name: str, where: str = "", also: Iterable[str] = ()) -> Part:
        """The part, or UserError: unknown, claimed by two plugins, or perhaps in a plugin set aside; `also` are near misses too."""
        if (kind, name) in self.clashes:
            raise UserError(f"{where + ': ' if where else ''}{self.clashes[kind, name]}")
        if (kind, name) not in self.parts:
            error = unknown(kind, name, [*self.names(kind), *also], where)
            broken = "; ".join(f'plugin "{plugin}" was set aside: {reason}' for plugin, reason in self.aside.items())
            raise UserError(f"{error}; {broken}") if broken else error
        return self.parts[kind, name]

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.parts if k == kind)


def catalogue(files: Iterable[str] = ()) -> Catalogue:
    """Loads the built-ins, then every installed entry point, then the files; UserError only for a file that fails."""
    manager = pluggy.PluginManager("rtbench")
    manager.add_hookspecs(hookspecs)
    found = Catalogue(manager, files=tuple(dict.fromkeys(files)))
    for name in BUILTINS:
        _add(found, importlib.import_module(f"rtbench.builtin.{name}"), name, OWN, _own_version())
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        owner = (entry.dist and entry.dist.name) or entry.name
        try:
            _add(found, entry.load(), f"{owner}:{entry.name}", owner, (entry.dist and entry.dist.version) or "")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit while it is imported
            found.aside[f"{owner}:{entry.name}" if owner in found.aside else owner] = _reason(error)
    for path in found.files:
        try:
            clashes = _add(found, _load_file(path), path, Path(path).name, "")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise UserError(f'plugin file "{path}": {_reason(error)}') from error
        if clashes:
            raise UserError(f'plugin file "{path}": {clashes[0]}')
    return found


def _add(found: Catalogue, module: Any, plugin: str, owner: str, owner_version: str) -> list[str]:
    """Registers one plugin: first everything is read and validated, then all of its parts are added, or none. Returns its clashes."""
    if not isinstance(module, ModuleType):
        raise ValueError(f"its entry point names {module!r}, not a module with hooks")
    wanted = getattr(module, "RTBENCH_API", API)
    if wanted != API:
        raise ValueError(f"it was written for plugin interface {wanted}, this rtbench has {API}; install a matching version")
    _check_hooks(module)
    probe = pluggy.PluginManager("rtbench")
    probe.add_hookspecs(hookspecs)
    probe.register(module)
    parts = []
    for kind in VOCABULARY:
        if hook := vars(module).get(f"rtbench_{kind}s"):  # not through the manager: pluggy drops a hook that forgot to return
            parts.extend(_parts(kind, hook(), owner, owner_version, module.__name__))
    found.manager.register(module, name=plugin)
    clashes = []
    for part in parts:
        other = found.parts.setdefault((part.kind, part.name), part)
        if other is not part:
            owners = f'"{other.owner}" and "{part.owner}"'
            clashes.append(f'{part.kind} "{part.name}" is claimed by {owners}; uninstall one or rename its part')
            found.clashes[part.kind, part.name] = clashes[-1]
    return clashes


def _check_hooks(module: ModuleType) -> None:
    """A function named rtbench_* that is no hook, or a module without any hook, is a misspelling worth an error."""
    specs = [name for name in vars(hookspecs) if name.startswith("rtbench_")]
    routines = {name: value for name, value in vars(module).items() if inspect.isroutine(value)}
    marked = [name for name, value in routines.items() if hasattr(value, "rtbench_impl")]
    for name in routines:
        if name not in specs and (name in marked or name.startswith("rtbench_")):
            raise ValueError(str(unknown("hook", name, specs)))
        if name in specs and name not in marked:
            raise ValueError(f"{name} lacks @hookimpl")
    if not marked:
        raise ValueError(f"{module.__name__} has no hook; it needs a function such as rtbench_pruners marked @hookimpl")


def _parts(kind: str, returned: Any, owner: str, owner_version: str, module: str) -> list[Part]:
    if not isinstance(returned, Mapping):
        raise ValueError(f"rtbench_{kind}s returns {type(returned).__name__}, not a dict of name: function")
    for name, function in returned.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise ValueError(f'{kind} name "{name}" is not lower case letters, digits and single dashes')
        validate(kind, name, function)
    return [Part(kind, name, function, owner, owner_version, module) for name, function in returned.items()]


def _load_file(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    # Its own module name, so that two files of the same name in two folders do not shadow each other.
    name = "rtbench_file_" + re.sub(r"\W", "_", str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        folder, top = Path(path).resolve().parent, str(error.name).partition(".")[0]
        if (folder / f"{top}.py").exists() or (folder / top).is_dir():
            raise ValueError(f"{error}; what lies beside a plugin file is found with PYTHONPATH={folder}") from error
        raise
    return module


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, ValueError | UserError) else f"{type(error).__name__}: {text}"


def _own_version() -> str:
    from rtbench import __version__

    return __version__
