"""Where a number comes from: versions, plugin, host, device, threads, times, git commit. Nothing here is part of a key."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from rtbench.engine.code import KINDS, used
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue

PACKAGES = ("rtbench", "torch", "numpy", "safetensors")
folder: str | None = None
"""Where rtbench was started, in a process that has left it."""


def provenance(
    stage: Stage, catalogue: Catalogue, device: str, started: float, seconds: float, code: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """What provenance.json holds, but for the timings. code: digests by kind and name of the parts, as `rtbench.engine.code` makes them."""
    facts = {**machine(device), "threads": torch.get_num_threads()}
    facts.update(started=_time(started), finished=_time(None), seconds=round(seconds, 4))
    if stage.verb in KINDS:
        main = catalogue.get(KINDS[stage.verb], (stage.net if stage.verb == "init" else stage.part)["use"])
        facts["plugin"] = {"name": main.owner, "version": main.owner_version, "part": f"{main.kind} {main.name}"}
    parts = used([stage], catalogue)
    facts["plugins"] = {part.owner: part.owner_version for part in parts.values()}
    facts["parts"] = {name: {"plugin": part.owner, "version": part.owner_version, "code": code.get(name)} for name, part in parts.items()}
    return facts


def overview(found: Iterable[dict[str, Any]], plugins: Iterable[str]) -> dict[str, str]:
    """Where a board's numbers come from, for its reader: software, machines, when; what differs among stages is listed."""
    facts = [fact for fact in found if fact]
    if not facts:
        return {}
    columns = {
        "software": (f"{name} {number}" for fact in facts for name, number in fact["versions"].items()),
        "python": (fact["python"] for fact in facts),
        "plugins": plugins,
        "machine": (f"{fact['processor']}, {fact['cores']} cores, {fact['threads']} threads, device {fact['device']}" for fact in facts),
        "commit": (fact["commit"] for fact in facts if fact.get("commit")),
    }
    times = sorted(fact["finished"] for fact in facts)
    rows = {name: ", ".join(sorted(set(values))) for name, values in columns.items()}
    rows["finished"] = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
    return {name: text for name, text in rows.items() if text}


@functools.lru_cache
def machine(device: str) -> dict[str, Any]:
    """The machine and the software, the same for every stage of a process."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "host": platform.node(), "system": platform.platform(), "python": platform.python_version(), "device": device,
        "processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": _versions(), "commit": _commit(),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the folder rtbench is run from, "+" behind it where files are changed; None outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=5, check=True, cwd=folder).stdout.strip()

    try:
        head, dirty = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")


def _time(when: float | None) -> str:
    moment = datetime.datetime.now(datetime.UTC) if when is None else datetime.datetime.fromtimestamp(when, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")
