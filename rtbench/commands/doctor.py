"""What `rtbench doctor` reports: the environment, plugins, devices, data that was found."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from rtbench.commands.study import data_root
from rtbench.engine.provenance import machine
from rtbench.engine.run import Options, load_data
from rtbench.errors import UserError
from rtbench.planning.resolve import Resolver
from rtbench.plugins import Catalogue, catalogue

PACKAGES = ("rtbench", "torch", "torchvision", "numpy", "safetensors", "timm", "pyautoattack", "torchattacks", "click", "pluggy", "rich")


def report(files: Iterable[str], data: str | None) -> tuple[list[tuple[str, str]], bool]:
    """(what, finding) rows, and whether everything installed is sound; data that is not here is no fault."""
    found = catalogue(files)
    facts = machine("cpu")
    rows = [("python", facts["python"]), ("system", facts["system"]), ("processor", f"{facts['processor']}, {facts['cores']} cores")]
    rows.append(("threads", str(facts["threads"])))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) or "none"))
    for package in PACKAGES:
        try:
            rows.append((f"package {package}", version(package)))
        except PackageNotFoundError:
            rows.append((f"package {package}", "not installed"))
    owners: dict[str, list[str]] = {}
    for part in found.parts.values():
        owners.setdefault(f"{part.owner} {part.owner_version}".rstrip(), []).append(part.name)
    rows += [(f"plugin {owner}", f"{len(names)} parts" if len(names) > 6 else ", ".join(names)) for owner, names in owners.items()]
    rows += [(f"plugin {owner}", f"SET ASIDE: {reason}") for owner, reason in found.aside.items()]
    rows += [(f"{kind} {name}", f"CLASH: {text}") for (kind, name), text in found.clashes.items()]
    root = data_root(data)
    rows.append(("data folder", root if Path(root).is_dir() else f"{root} (not there)"))
    for name in found.names("dataset"):
        rows.append((f"dataset {name}", _dataset(found, name, root)))
    return rows, not found.aside and not found.clashes


def _dataset(found: Catalogue, name: str, root: str) -> str:

    try:
        part = Resolver({}, found)("dataset", name, name)
        data = load_data(part, found, Options(root=root))
    except UserError as error:
        return f"not usable: {error}"
    return f"{len(data.train)} train, {len(data.valid)} valid, {len(data.test) if data.test is not None else 0} test, {data.shape}"
