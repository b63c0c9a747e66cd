"""Checks of stored stages that need no network: record, key, files, recipe, inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rtbench import keys
from rtbench.engine.code import named
from rtbench.engine.state import unpack
from rtbench.errors import UserError
from rtbench.evidence.verdict import MALFORMED, Verdict
from rtbench.parts.kinds import lender
from rtbench.planning.borrow import lent
from rtbench.planning.plan import PROTOCOL
from rtbench.planning.resolve import Resolver
from rtbench.plugins import Catalogue
from rtbench.storage.results import PROVENANCE, RECORD, WORDS, Lost, signed
from rtbench.storage.store import Store

FIELDS = {"verb", "protocol", "part", "data", "net", "seed", "inputs"}
KINDS = {"train": "trainer", "prune": "pruner", "probe": "probe"}
TRIALS = 1000
"""Trials whose seeds are tried."""


def check_stage(store: Store, key: str, found: Catalogue, verdict: Verdict) -> dict[str, Any] | None:
    """The record of a stage after all checks of it; None where there is nothing to go on with."""
    try:
        text = (store.folder(key) / RECORD).read_bytes()
    except OSError as error:
        verdict.problem("record", f"{key}/{RECORD} cannot be read ({error.strerror})")
        return None
    record = signed(text)
    if record is None or not record.keys() >= WORDS or not isinstance(record["stage"], dict) or record["stage"].keys() != FIELDS:
        verdict.problem("record", f"{key}/{RECORD} does not match its own digest, or is no record")
        return None
    if (own := keys.key(record["stage"])) != key:
        verdict.problem("key", f"the folder {key} holds the record of {own}")
    whole = _files(store, key, record, verdict)
    _recipe(record["stage"], found, store.provenance(key), verdict)
    return record if whole else None


def _files(store: Store, key: str, record: dict[str, Any], verdict: Verdict) -> bool:
    """Whether every file of a result, but for weights that may be dropped, is as its record says; nothing else may lie there."""
    there, before = set(store.listing(key)), len(verdict.problems)
    for name in sorted(there - {RECORD} - record["files"].keys()):
        verdict.problem("files", f"{key}/{name} is in no record")
    if record["files"].keys() != record["sizes"].keys():
        verdict.problem("record", f"{key} lists digests and sizes of different files")
        return False
    for name in sorted(record["files"]):
        path = store.folder(key) / name
        if not path.is_file():
            if not name.startswith("state."):
                verdict.problem("files", f"{key}/{name} is gone")
            continue
        if path.stat().st_size != record["sizes"][name]:
            verdict.problem("files", f"{key}/{name} has {path.stat().st_size} bytes instead of {record['sizes'][name]}")
        elif keys.file_digest(path) != record["files"][name]:
            verdict.problem("files", f"{key}/{name} does not match its digest")
        elif name.startswith("state"):
            _masks(key, name, path.read_bytes(), verdict)
    return len(verdict.problems) == before


def _masks(key: str, name: str, content: bytes, verdict: Verdict) -> None:
    weights, masks = unpack(content)
    for layer, mask in masks.items():
        if layer not in weights or weights[layer].shape != mask.shape:
            verdict.problem("masks", f'{key}/{name} has a mask "{layer}" that fits no weight')
        elif bool((weights[layer][~mask.bool()] != 0).any()):
            verdict.problem("masks", f'{key}/{name} has pruned weights of "{layer}" that are not 0')


def _recipe(stage: dict[str, Any], found: Catalogue, facts: dict[str, Any], verdict: Verdict) -> None:
    """Whether this rtbench and its plugins read the stage as it was meant."""
    if stage["verb"] not in PROTOCOL:
        verdict.problem("verb", f'there is no verb "{stage["verb"]}"')
    elif stage["protocol"] != PROTOCOL[stage["verb"]]:
        known = PROTOCOL[stage["verb"]]
        verdict.problem("protocol", f"{stage['verb']} of version {stage['protocol']} was made by another rtbench; this one has {known}")
    plain = {name: value for name, value in stage["data"].items() if name != "digest"}
    parts = [("dataset", plain), ("architecture", stage["net"])]
    parts += [(KINDS[stage["verb"]], stage["part"])] if stage["verb"] in KINDS else []
    for kind, part in parts:
        if absent := _absent(kind, part, found, facts):
            verdict.unsaid.extend(f"the {text} is not installed" for text in absent)
        else:
            check_part(kind, part, found, verdict)
    seeds = (keys.seed(trial, "probe", stage["part"]) for trial in range(TRIALS))
    if stage["verb"] == "probe" and stage["seed"] not in seeds:
        verdict.problem("seed", f"{stage['seed']} is that of no trial of this probe: seed or probe were changed")


def _absent(kind: str, part: dict[str, Any], found: Catalogue, facts: dict[str, Any]) -> list[str]:
    """The parts in a resolved one that belong, as its provenance says, to a plugin that is not here; [] if any other is unknown."""
    try:
        unknown = [f"{kind} {name}" for kind, name in named(kind, part, found) if (kind, name) not in found.parts]
    except MALFORMED:
        return []
    here = {part.owner for part in found.parts.values()}
    if "parts" in facts:
        owners = {name: fact["plugin"] for name, fact in facts["parts"].items() if fact["plugin"] not in here}
    else:  # an earlier rtbench did not say which of a stage's plugins each part is of
        owners = dict.fromkeys(unknown, " or ".join(plugin for plugin in facts.get("plugins", {}) if plugin not in here))
    known = all(owners.get(name) for name in unknown)
    return [f'{name} of plugin "{owners[name]}"' for name in dict.fromkeys(unknown)] if known else []


def check_part(kind: str, part: dict[str, Any], found: Catalogue, verdict: Verdict) -> None:
    """Whether a resolved part is what its name and knobs resolve to here."""
    try:
        resolved = Resolver({}, found)(kind, _written(part), kind)
    except (UserError, KeyError, TypeError, AttributeError) as error:
        verdict.problem("part", f"{kind} is not one of this rtbench: {error}")
        return
    here, there = list(_versions(resolved)), list(_versions(part))
    for (name, one), (_, other) in zip(here, there, strict=False):
        if one != other:
            verdict.problem("version", f'{kind} "{name}" was made by version {other}; version {one} is installed')
    if here == there and resolved != part:
        verdict.problem("knobs", f'{kind} "{part["use"]}" has other knobs than such a part has here')


def _written(part: Any) -> Any:
    """A resolved part as a suite writes it."""
    if isinstance(part, dict) and part.keys() == {"use", "version", "knobs"}:
        return {"use": part["use"], **{name: _written(value) for name, value in part["knobs"].items()}}
    if isinstance(part, dict):
        return {name: _written(value) for name, value in part.items()}
    return [_written(item) for item in part] if isinstance(part, list) else part


def _versions(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict) and "use" in part and "knobs" in part:
        yield part["use"], part.get("version")
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _versions(value)


def check_inputs(store: Store, key: str, record: dict[str, Any], parents: dict[str, dict[str, Any] | None], found: Catalogue,
                 verdict: Verdict) -> None:  # fmt: skip
    """Whether a probe measured the states that its inputs name, on the data and network that made them."""
    stage, facts = record["stage"], store.provenance(key)
    if not facts:
        verdict.problem("provenance", f"{key}/{PROVENANCE} is lost, damaged or of another stage")
    borrowed, part = stage["inputs"].keys() - {"weights"}, found.parts.get(("probe", stage["part"]["use"]))
    if "weights" not in stage["inputs"] or (borrowed and part and lender(part.function) is None):
        verdict.problem("parent", f"a probe reads weights, not {', '.join(stage['inputs']) or 'nothing'}")
        return
    for role in sorted(borrowed if part else ()):
        _check_lent(store, stage, role, facts, parents.get(stage["inputs"][role]), found, verdict)
    ref = stage["inputs"]["weights"]
    parent = parents.get(ref.split("/")[0])
    if parent is None:
        return
    for name in ("data", "net"):
        if parent["stage"][name] != stage[name]:
            verdict.problem("data" if name == "data" else "network", f"not that of {ref}, which was measured")
    try:
        digest = store.state_digest(ref)
    except Lost as error:
        verdict.problem("parent", str(error))
        return
    if facts and facts.get("weights") != digest:
        verdict.problem("weights", f"those of {ref} are not those that were measured")


def _check_lent(store: Store, stage: dict[str, Any], role: str, facts: dict[str, Any], lending: dict[str, Any] | None, found: Catalogue,
                verdict: Verdict) -> None:  # fmt: skip
    """Whether what a probe borrowed was made by the probe that it borrows from, on the same data, and is what it was given."""
    if lending is None:
        return
    key, own = stage["inputs"][role], role == "own"
    if lending["stage"]["part"] != lent(found, stage["part"], own) or lending["stage"]["data"] != stage["data"]:
        verdict.problem("parent", f"{key} is no measurement that this probe borrows as {role}")
    elif own and lending["stage"]["inputs"]["weights"] != stage["inputs"]["weights"]:
        verdict.problem("parent", f"{key} was measured on other weights")
    elif facts and facts.get(role) != store.samples_digest(key):
        verdict.problem("parent", f"the samples of {key} are not those that were borrowed")
