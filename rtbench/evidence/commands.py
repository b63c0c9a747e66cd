"""The commands that check a stored stage, and make it again outside of its store."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator
from typing import Any

from rtbench.plugins import OWN
from rtbench.storage.store import Store


def commands(store: Store, stages: list[dict[str, Any]], attack: dict[str, Any] | None) -> str:
    """How to check the last of these stages, and how to get it again outside of the store. attack: the one of a probe."""
    stage, where = stages[-1], shlex.quote(str(store.path))
    lines = [f"rtbench show {stage['key'][:12]} --store {where}"]
    if stage["verb"] == "probe":
        again = " --again 20" if attack else ""
        lines += [" ".join([f"rtbench verify {where} --key {stage['key'][:12]}{again}", *_files(stages)]), *_anew(stage, attack, where)]
    else:
        lines.append(f"rtbench export {stage['key']} --store {where} --output model.safetensors")
    return "## Check it yourself\n\n```sh\n" + "\n".join(lines) + "\n```" + (_needed(stages) if stage["verb"] == "probe" else "")


def _files(stages: list[dict[str, Any]]) -> list[str]:
    """Options for the plugin files whose parts these stages used."""
    return [f"--plugin {shlex.quote(name)}" for name, number in _plugins(stages).items() if _is_file(name, number)]


def _plugins(stages: list[dict[str, Any]]) -> dict[str, str]:
    """Every plugin that they used, and its version."""
    found = {name: number for stage in stages for name, number in stage["provenance"].get("plugins", {}).items()}
    return {name: number for name, number in sorted(found.items()) if name != OWN}


def _is_file(name: str, number: str) -> bool:
    return not number and name.endswith(".py")


def _needed(stages: list[dict[str, Any]]) -> str:
    """What must be there for the commands, besides rtbench."""
    plugins = _plugins(stages)
    files = [f"`{name}`" for name, number in plugins.items() if _is_file(name, number)]
    others = [f"{name} {number}".rstrip() for name, number in plugins.items() if not _is_file(name, number)]
    text = f"\n\nThe store keeps the name of a plugin file and not its path: say where {' and '.join(files)} lies." if files else ""
    return text + (f"\n\nTo be installed: {', '.join(others)}." if others else "")


def _anew(stage: dict[str, Any], attack: dict[str, Any] | None, where: str) -> Iterator[str]:
    """The commands that attack the same weights in the same way, where `rtbench evaluate` can say it."""
    knobs = stage["part"].get("knobs", {})
    if attack is None or stage["part"]["use"] != "accuracy" or knobs.get("sample_seed"):
        return
    words = [
        "rtbench evaluate model.safetensors",
        *_options("arch", "knob", stage["net"]),
        *_options("dataset", "data-knob", stage["data"]),
    ]
    threat = [f"--{name} {attack['knobs'][name]}" for name in ("norm", "eps") if name in attack["knobs"]]
    own = {**attack, "knobs": {name: value for name, value in attack["knobs"].items() if name not in ("norm", "eps")}}
    words += [*_options("attack", "attack-knob", own), *threat]
    words += [f"--{name} {knobs[name]}" for name in ("samples", "rule", "split", "batch") if knobs[name] is not None]
    yield f"rtbench export {stage['inputs']['weights']} --store {where} --output model.safetensors"
    yield " ".join([*words, f"--seed {stage['seed']}", *_files([stage])])


def _options(name: str, knob: str, part: dict[str, Any]) -> list[str]:
    return [
        f"--{name} {part['use']}",
        *(f"--{knob} {shlex.quote(f'{word}={_toml(value)}')}" for word, value in part["knobs"].items() if value is not None),
    ]


def _toml(value: Any) -> str:
    """As `--knob` reads it: a bare text, unless that would be read as something else."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return f'"{value}"'
