"""Hashing: keys of stages, seeds, digests. No other module hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces; NaN and infinities raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key(value: Any) -> str:
    """The 96-bit name of a JSON value, 24 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:24]


def alike(stage: dict[str, Any]) -> str:
    """The same text for stages that differ in seed and inputs alone, and so take about as long. stage: as it is described in a record."""
    return key({word: stage[word] for word in ("verb", "part", "data", "net")})


def seed(*parts: Any) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    return int.from_bytes(hashlib.sha256(canonical(list(parts)).encode()).digest()[:8], "big") >> 1


def digest(*chunks: bytes | memoryview) -> str:
    """SHA-256 of the chunks, one after the other, in hexadecimal."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
