"""Codes of a part that the owner of a store said to compute the same, in STORE/accepted.json; no result depends on it."""

from __future__ import annotations

import json
from collections.abc import Collection

from rtbench import keys
from rtbench.storage.disk import explained, write_aside
from rtbench.storage.results import Results

FILE = "accepted.json"


def accepted(store: Results) -> dict[str, list[str]]:
    """Digests by kind and name of the part, "pruner magnitude"; empty where nothing was accepted, or the file is damaged."""
    try:
        return {str(part): list(map(str, codes)) for part, codes in json.loads((store.path / FILE).read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def accept(store: Results, part: str, codes: Collection[str]) -> None:
    """Remembers that these codes of the part compute the same, and the same as those accepted before."""
    known = accepted(store)
    known[part] = sorted({*known.get(part, []), *codes})
    with explained(store.path):
        write_aside(store.path / FILE, keys.canonical(known).encode())
