"""Runs one stage: rebuild the model, load the inputs, apply the masks, call the part, store what came out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from rtbench.engine.context import Context, Options, Result, build, load_data
from rtbench.engine.loop import Loop
from rtbench.engine.provenance import provenance
from rtbench.engine.state import pack, unpack
from rtbench.engine.verbs import VERBS, StageFailure, check_network
from rtbench.evaluation.guard import own_randomness
from rtbench.evaluation.process import usual
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.storage.results import SAMPLES, STATE, WITNESS
from rtbench.storage.store import Store

__all__ = ["Options", "StageFailure", "build", "check_network", "load_data", "run_stage"]


@usual()
def run_stage(
    stage: Stage, store: Store, catalogue: Catalogue, options: Options, progress: Callable[[int, int], None] | None = None
) -> None:
    """Runs the stage, continuing where a killed run of it stopped, and puts its result into the store.

    Raises StageFailure, AttackFailure or whatever the part raised; Missing or Corrupt where an input is not there as recorded.
    """
    started = time.time()
    context = begun(stage, store, catalogue, options, progress)
    with own_randomness(stage.seed):
        result = VERBS[stage.verb](context)
    ended(context, result, started)


def begun(
    stage: Stage, store: Store, catalogue: Catalogue, options: Options, progress: Callable[[int, int], None] | None = None
) -> Context:
    """What a stage runs with, at its start or where a killed run of it stopped."""
    rng = torch.Generator().manual_seed(stage.seed)
    counts = {"forwards": 0, "gradients": 0}
    # What was saved without adversarial examples cannot go on with them, nor the other way round.
    file = store.work(stage.key) / ("witness.pt" if options.witness and stage.verb == "probe" else "loop.pt")
    loop = Loop(file=file, rng=rng, seconds=options.checkpoint_seconds, progress=progress,
                deadline=options.deadline, counts=counts)  # fmt: skip
    data = load_data(stage.data, catalogue, options)
    return Context(stage, store, catalogue, options, data, rng, loop, counts)


def ended(context: Context, result: Result, started: float, **more: Any) -> None:
    """Puts a stage's result into the store. started: seconds since the epoch. more: facts of its provenance."""
    stage, store, loop, options = context.stage, context.store, context.loop, context.options
    final = [[0, name, value] for name, value in (result.numbers or {}).items()]
    record = {
        "stage": stage.described(), "records": [[step, name, _number(value)] for step, name, value in loop.records + final],
        "flags": sorted(result.flags), "about": result.about or {}, "passes": context.counts,
    }  # fmt: skip
    facts = provenance(stage, context.catalogue, options.device, started, loop.taken(), options.code) | more
    facts["timings"] = {name: _number(value) for name, value in (result.timings or {}).items()}
    facts.update(context.inputs)
    facts["rows"] = options.places.get(stage.key, [])
    files = _files(result, loop)
    if WITNESS in files and store.complete(stage.key):
        add_witness(store, stage.key, record, files)
    else:
        store.put(stage.key, record, facts, files)


def _files(result: Result, loop: Loop) -> dict[str, bytes]:
    files = {} if result.weights is None else {STATE: pack(result.weights, result.masks)}
    files.update({f"state.{name}.safetensors": pack(state, result.masks) for name, state in loop.kept.items()})
    if result.samples:
        files[SAMPLES] = pack(result.samples)
    if result.witness is not None:
        files[WITNESS] = pack(result.witness)
    return files


def add_witness(store: Store, key: str, record: dict[str, Any], files: dict[str, bytes]) -> None:
    """Gives a finished probe the adversarial examples it was run again for; StageFailure unless it came out as it did before."""
    before = store.record(key)
    changed = [name for name in ("records", "flags", "about", "passes") if before[name] != record[name]]
    if not changed:
        old, new = unpack(store.samples_bytes(key))[0], unpack(files[SAMPLES])[0]
        changed = [name for name in old if not torch.is_floating_point(old[name]) and not torch.equal(old[name], new[name])]
    if changed:
        raise StageFailure(f"run again to keep its adversarial examples, it came out otherwise: {', '.join(changed)}; nothing was replaced")
    store.replace(key, record, files)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
