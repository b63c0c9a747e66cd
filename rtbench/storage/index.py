"""The index: an SQLite view of a store's records, brought up to date from the folders, thrown away at the first doubt."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rtbench import keys
from rtbench.errors import UserError
from rtbench.storage.results import SAMPLES, Lost, Results

VERSION = 6
PATIENCE = 5.0
"""Seconds to wait for another process that writes the index, before doing without the file."""
TABLES = (
    """create table stages (key text primary key, stamp text, verb text, part text, version integer, dataset text, net text, seed integer,
    seconds real, host text, device text, finished text, forwards integer, gradients integer, alike text, about text, flags text,
    parts text, plugins text)""",
    "create table records (key text, step integer, name text, value real)",
    "create index records_key on records (key)",
    "create table damaged (key text primary key, stamp text)",
    "create table bits (key text primary key, ids text, robust blob)",
    "create table ids (digest text primary key, ids blob)",
)


class Row(NamedTuple):
    """What the board needs of one stage. values: the last value of each name; timings are among them."""

    values: dict[str, float | None]
    about: dict[str, Any]
    flags: list[str]
    seconds: float


class Bits(NamedTuple):
    """Verdicts of one stage. ids: digest of the sample ids, see `Index.ids`. robust: a bit per sample, the first one highest."""

    ids: str
    robust: bytes


class Index:
    """An index of one store, in STORE/index.sqlite or, where that cannot be written or read, in memory.

    corrupt: keys of stages whose folders do not hold what was written; they are not in the index.
    """

    def __init__(self, store: Results) -> None:
        self.store = store
        self.corrupt: list[str] = []
        path = store.path / "index.sqlite"
        try:
            self._use(path)
        except sqlite3.OperationalError:  # locked, a folder, or on a read-only or full disk: the folders have everything
            self._use(":memory:")
        except sqlite3.DatabaseError:  # not a database, or not any more
            try:
                delete(path)
                self._use(path)
            except (OSError, sqlite3.Error):
                self._use(":memory:")

    def _use(self, place: Path | str) -> None:
        self.db = _open(place)
        try:
            self.sync()
        except BaseException:
            self.db.close()
            raise

    def sync(self) -> None:
        """Reads what is new or changed, forgets what is gone; damaged folders go to `corrupt` and are not indexed.

        DatabaseError where a damaged index has lost ids that verdicts are under.
        """
        known = dict(self.db.execute("select key, stamp from stages union all select key, stamp from damaged"))
        stamps = {key: keys.canonical(self.store.listing(key)) for key in self.store.finished()}
        with self.db:
            for key in known.keys() - stamps.keys():
                self._forget(key)
            for key, stamp in stamps.items():
                if known.get(key) != stamp:
                    self._forget(key)
                    try:
                        # What is new was written whole or not at all; what changed since may hold anything.
                        self._insert(key, stamp, self.store.verify(key, deep=key in known), self.store.provenance(key))
                    except Lost:
                        self.db.execute("insert into damaged values (?, ?)", (key, stamp))
        self.corrupt = [key for (key,) in self.db.execute("select key from damaged order by key")]
        # Read whole and kept, for a damaged file may have lost the way to a row that is there.
        self._ids = {digest: bytes(ids) for digest, ids in self.db.execute("select digest, ids from ids")}
        under = {digest for (digest,) in self.db.execute("select ids from bits")}
        if any(keys.digest(self._ids.get(digest, b"")) != digest for digest in under):
            raise sqlite3.DatabaseError("sample ids are lost")

    def _forget(self, key: str) -> None:
        for table in ("stages", "records", "damaged", "bits"):
            self.db.execute(f"delete from {table} where key = ?", (key,))

    def _insert(self, key: str, stamp: str, record: dict[str, Any], provenance: dict[str, Any]) -> None:
        stage, passes = record["stage"], record["passes"]
        part = stage["part"]
        if stage["verb"] == "probe" and SAMPLES in record["files"]:
            self._insert_bits(key)
        row = (
            key, stamp, stage["verb"], part.get("use"), part.get("version"), stage["data"].get("use"), stage["net"].get("use"),
            # SQLite's integers are signed 64 bit, and so are the seeds.
            stage["seed"], provenance.get("seconds"), provenance.get("host"), provenance.get("device"), provenance.get("finished"),
            passes["forwards"], passes["gradients"], keys.alike(stage), json.dumps(record["about"]),
            json.dumps(record["flags"]), *(json.dumps(provenance.get(word, {}), sort_keys=True) for word in ("parts", "plugins")),
        )  # fmt: skip
        self.db.execute(f"insert into stages values ({','.join('?' * len(row))})", row)
        timings = [[0, name, value] for name, value in provenance.get("timings", {}).items()]
        self.db.executemany("insert into records values (?, ?, ?, ?)", [(key, *entry) for entry in record["records"] + timings])

    def _insert_bits(self, key: str) -> None:
        found = verdicts(self.store.samples_bytes(key))
        if found is not None:
            ids, robust = found
            digest = keys.digest(ids)
            self.db.execute("insert or ignore into ids values (?, ?)", (digest, ids))
            self.db.execute("insert into bits values (?, ?, ?)", (key, digest, robust))

    def bits(self, keys: Collection[str]) -> dict[str, Bits]:
        """The verdicts of those stages that kept one per sample, under its id."""
        wanted = set(keys)
        found = self.db.execute("select key, ids, robust from bits")
        return {key: Bits(ids, robust) for key, ids, robust in found if key in wanted}

    def ids(self, digest: str) -> bytes:
        """Sample ids, int64 little-endian."""
        return self._ids[digest]

    def rows(self, keys: list[str]) -> dict[str, Row]:
        """The rows of those stages that are done."""
        found: dict[str, Row] = {}
        wanted = set(keys)
        for key, about, flags, seconds in self.db.execute("select key, about, flags, seconds from stages"):
            if key in wanted:
                found[key] = Row({}, json.loads(about), json.loads(flags), seconds or 0.0)
        for key, name, value in self.db.execute("select key, name, value from records order by rowid"):
            if key in found:
                found[key].values[name] = value
        return found

    def curve(self, key: str) -> list[tuple[int, str, float | None]]:
        """Every record of one stage in the order written: (step, name, value)."""
        return list(self.db.execute("select step, name, value from records where key = ? order by rowid", (key,)))

    def origins(self, word: Literal["parts", "plugins"], keys: Collection[str]) -> list[tuple[dict[str, Any], int]]:
        """What the provenance of those stages says of the parts or plugins they used, and of how many of them it says the same."""
        wanted = set(keys)
        counts = Counter(text for key, text in self.db.execute(f"select key, {word} from stages") if key in wanted)
        return [(json.loads(text), count) for text, count in counts.items()]

    def done(self) -> set[str]:
        return {key for (key,) in self.db.execute("select key from stages")}

    def seconds(self) -> dict[str, float]:
        """Mean seconds of finished stages by what `keys.alike` says of them: what another such stage will take."""
        return dict(self.db.execute("select alike, avg(seconds) from stages where seconds is not null group by alike"))

    def close(self) -> None:
        self.db.close()


def verdicts(content: bytes) -> tuple[bytes, bytes] | None:
    """Ids (int64) and robust bits, packed, of a samples file in safetensors format; None if it has not one of each per sample.

    Read here by hand, so that a board needs no torch.
    """
    import numpy as np

    size = int.from_bytes(content[:8], "little")
    head, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    columns = {name: (head[name]["dtype"], head[name]["shape"], head[name]["data_offsets"]) for name in ("ids", "robust") if name in head}
    if [dtype for dtype, _, _ in columns.values()] not in (["I64", "U8"], ["I64", "BOOL"]) or columns["ids"][1] != columns["robust"][1]:
        return None
    ids, robust = (body[start:end] for _, _, (start, end) in columns.values())
    return (ids, np.packbits(np.frombuffer(robust, np.uint8)).tobytes()) if len(columns["ids"][1]) == 1 and len(ids) else None


def _open(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=PATIENCE)
    try:
        if _version(db) != VERSION:
            _create(db)
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection) -> int:
    with contextlib.closing(db.execute("pragma user_version")) as cursor:
        (version,) = cursor.fetchone()
    return int(version)


def _create(db: sqlite3.Connection) -> None:
    """New tables in place of whatever is there, under a lock: two processes may come here at once."""
    db.execute("begin immediate")
    with db:
        if _version(db) == VERSION:
            return
        for (name,) in db.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'").fetchall():
            db.execute(f'drop table "{name}"')
        for statement in (*TABLES, f"pragma user_version = {VERSION}"):
            db.execute(statement)


def delete(path: Path) -> None:
    """Deletes an index; it is derived."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def rebuild(store: Results) -> int:
    """Deletes the index and reads every folder again; returns how many stages are in it. UserError if it cannot be deleted."""
    path = store.path / "index.sqlite"
    try:
        delete(path)
    except OSError as error:
        raise UserError(f'the index "{path}" cannot be replaced ({error.strerror}); remove it yourself') from None
    index = Index(store)
    count = len(index.done())
    index.close()
    return count
