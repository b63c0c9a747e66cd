"""Looking after stores: merging two, dropping weights that nothing needs."""

from __future__ import annotations

import json
from pathlib import Path

from rtbench.errors import UserError
from rtbench.planning.plan import Plan
from rtbench.running.schedule import missing
from rtbench.storage.results import WITNESS, WORDS, Lost
from rtbench.storage.store import Store


def merge(target: Store, source: Store) -> tuple[int, int, list[str]]:
    """Copies every sound result of `source` that `target` lacks; returns how many were copied, were there, and the damaged ones.

    Weights that the target dropped and the source still has are taken, too, and adversarial examples that it never kept. What differs is
    left as the target has it.
    """
    copied, present, damaged = 0, 0, list[str]()
    target.writable()
    for key in source.finished():
        try:
            files = source.verify(key)["files"]
        except Lost:
            damaged.append(key)
            continue
        with target.claim(key) as mine:
            if mine and _gives_witness(target, key, source):
                copied += 1
            elif not mine or _has_all(target, key, [name for name in files if (source.folder(key) / name).is_file()]):
                present += 1
            else:
                target.adopt(key, source)
                copied += 1
    return copied, present, damaged


def _has_all(store: Store, key: str, names: list[str]) -> bool:
    try:
        own = store.verify(key, deep=False)["files"]
    except Lost:
        return False
    return all((store.folder(key) / name).is_file() for name in names if name in own)


def _gives_witness(target: Store, key: str, source: Store) -> bool:
    """Whether a sound result lacked adversarial examples that the same one of `source` has; it now has them."""
    other = source.record(key)
    if WITNESS not in other["files"]:
        return False
    try:
        own = target.record(key)
        kept = {name: digest for name, digest in other["files"].items() if name != WITNESS}
        told = WORDS - {"files", "sizes"}
        if own["files"] != kept or any(own[word] != other[word] for word in told):
            return False
        target.verify(key)
    except Lost:
        return False
    files = {name: (source.folder(key) / name).read_bytes() for name in other["files"]}
    target.replace(key, {word: own[word] for word in told}, files)
    return True


def gc(store: Store, plans: list[Plan], keep: str) -> tuple[int, int]:
    """Drops weights, never a record; returns how many stages lost theirs and the bytes freed.

    Kept are inputs of stages that `plans` still lack, and with keep = "measured" the states that boards of `plans` show.
    """
    done = {key for key in store.finished() if store.has(key)}
    needed: set[str] = set()
    for plan in plans:
        for key in missing(plan, store, done):
            needed |= plan.stages[key].parents()
        if keep == "measured":
            needed |= {point.key for point in plan.points}
    dropped = freed = 0
    for key in sorted(done - needed):
        if size := store.drop_state(key):
            dropped, freed = dropped + 1, freed + size
    return dropped, freed


def clean(store: Store) -> int:
    """Deletes what killed processes left in partial/ for stages that are done; returns the bytes freed."""
    left: dict[str, int] = {}
    for entry in store.partial.iterdir() if store.partial.is_dir() else []:
        key, dot, _ = entry.name.partition(".")
        if store.complete(key) or (dot and entry.is_dir()):
            left[key] = left.get(key, 0) + _size(entry)
    freed = 0
    for key, size in left.items():
        with store.claim(key) as mine:  # which deletes it
            freed += size if mine else 0
    return freed


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:  # another process deletes it at this moment
        return 0


def resolve(store: Store, prefix: str) -> str:
    """The one stage whose key begins with `prefix`; UserError if there is none or several."""
    found = [key for key in store.finished() if key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        names = sorted(path.name for path in store.results.iterdir()) if store.results.is_dir() else []
        failed = [name.removesuffix(".failed") for name in names if name.startswith(prefix) and name.endswith(".failed")]
        why = store.failure(failed[0]) if len(failed) == 1 else None
        raise UserError(f'no stage "{prefix}" in store "{store.path}"' + (f"; it failed: {why}" if why else ""))
    raise UserError(f'"{prefix}" is the beginning of {len(found)} keys, {found[0]} and {found[1]} among them; give more of it')


def failed(store: Store, prefix: str) -> str | None:
    """Reason and traceback of the one failed stage whose key begins with `prefix`; None if there is no such."""
    found = sorted(store.results.glob(f"{prefix}*.failed/reason.json")) if prefix.isalnum() else []
    if len(found) != 1 or any(key.startswith(prefix) for key in store.finished()):
        return None
    told = json.loads(found[0].read_text(encoding="utf-8"))
    return f"stage {found[0].parent.name.removesuffix('.failed')} failed: {told['reason']}\n{told['traceback']}".rstrip()


def exported(store: Store, ref: str, with_masks: bool) -> bytes:
    """Safetensors bytes of a stage's weights, with its masks if asked; UserError where the weights were dropped."""
    from rtbench.engine.state import pack, unpack

    prefix, slash, name = ref.partition("/")
    key = resolve(store, prefix)
    try:
        if store.record(key)["stage"]["verb"] == "probe":
            raise UserError(f"{key} is a probe and has no weights; `rtbench show {key[:8]}` names the stage it measured")
        weights, masks = unpack(store.state_bytes(f"{key}{slash}{name}"))
    except Lost as error:
        raise UserError(f"{error}; run its suite again to make it anew") from None
    return pack(weights, masks if with_masks else None)
