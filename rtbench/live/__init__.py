"""Attacks a model at hand: `rtbench.evaluate`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from rtbench.data.splits import Data, batches
from rtbench.engine.bind import Binder
from rtbench.engine.provenance import machine
from rtbench.errors import UserError
from rtbench.evaluation.guard import Changed, frozen, own_randomness
from rtbench.evaluation.judge import AttackFailure, correct
from rtbench.evaluation.process import usual
from rtbench.live import inputs
from rtbench.live.bar import bar
from rtbench.live.result import Evaluation, Judgement, judgement
from rtbench.live.verdict import nonzero, verdict
from rtbench.parts.kinds import knobs as knobs_of
from rtbench.parts.masks import ATTENTION, CONV
from rtbench.planning.resolve import Resolver
from rtbench.plugins import Catalogue, catalogue

HERE = "Ran in this process: hangs and exits of an attack are not contained."
ELSEWHERE = "Native attacks ran in processes of one thread, others in this one: hangs of an attack are not contained."
CALLABLE = "The model is a plain callable: train mode, weights and gradients inside of it are not guarded, and its sparsity is unknown."


@usual()
def evaluate(
    model: Any, x: Any, y: Any, attack: str | Iterable[str | Mapping[str, Any]] = "autoattack", norm: str | None = None,
    eps: str | float | Fraction | None = None, *, knobs: Mapping[str, Any] | None = None, samples: int | None = None, batch: int = 512,
    seed: int = 0, precision: str | None = None, device: str | torch.device | None = None, ids: Any = None, workers: int = 1,
    progress: bool | None = None, plugins: Iterable[str] = (),
) -> Evaluation:  # fmt: skip
    """Robust accuracy of a model under one attack or several, judged exactly as a suite judges; see docs/coming-from.md.

        rtbench.evaluate(model, x, y, attack="autoattack", norm="linf", eps="8/255")

    model: a torch module, or any callable, that takes float32 images (n, c, h, w) in [0, 1] and gives logits (n, classes), normalisation
    inside. It is judged in eval mode; modes, requires_grad, .grad, BatchNorm and generators are as before afterwards. Of a callable
    only the global generators are guarded.
    x: tensor or numpy array (n, c, h, w), floats in [0, 1] (rounded to float32) or uint8 from 0 to 255. y: labels (n,).
    attack: a name from `rtbench parts attack`; or a list of names and of tables such as {"use": "pgd", "steps": 20}.
    norm, eps: the threat, eps in input units, exact: "8/255". A float counts as the decimal number it prints as. norm is "linf" if not
    given; neither goes with "none". precision: "exact" or "bf16", of the attacks that have this knob, one at least.
    knobs: the others of the one attack. samples: only the first so many.
    batch: samples attacked at a time. seed: of the attacks' randomness, which is keyed by `ids`, int64 (n,), 0..n-1 if not given.
    device: where to run; the model's own if not given, on another one a copy of the model is attacked.
    workers: processes of one thread each that a native attack runs in on a CPU, where networks gain more from them than from threads.
    The model's class must be importable (or sit in a file of `plugins`), not defined in a notebook or the script that runs.
    progress: a line with the time left, on stderr; None shows it where it can be seen. plugins: Python files with hooks.

    Attacks run in this process: one that hangs or exits is not contained, so run attacks that you do not trust by a suite.
    An attack that fails has no number: its accuracy is None, its reason is in `failures`, and `worst` is "incomplete".
    Raises UserError for every mistake in the arguments.
    """
    started = time.monotonic()
    seed, batch, samples, workers = map(inputs.whole, (seed, batch, samples, workers))
    found = catalogue([plugins] if isinstance(plugins, str) else plugins)
    rng = inputs.seeded(seed)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers: {workers!r} is not a whole number from 1")
    probes = _probes(found, attack, knobs, {"norm": norm, "eps": eps, "precision": precision}, {"batch": batch, "samples": samples})
    module, where = inputs.network(model, device)
    if isinstance(module, inputs.Plain) and any(each.get("precision") == "bf16" for each in _knobs(probes)):
        raise UserError("precision: bf16 needs a torch module, of which a copy in bfloat16 is made; this model is a plain callable")
    pixels = inputs.images(x)
    split = inputs.split_of(pixels, inputs.labels(y, len(pixels)), ids, where)
    split = split.subset(torch.arange(min(samples or len(split), len(split))))
    data = Data(split, split, split, None, split.shape, inputs.classes(module, split))
    flags = ["train-mode"] if any(part.training for part in module.modules()) and not isinstance(module, inputs.Plain) else []
    binder = Binder(found, seed, rng, data)
    judged = {name: _judged(name, binder, probe, module, progress, workers) for name, probe in probes.items()}
    clean = next((each.clean for each in judged.values() if each.clean is not None), None)
    facts = machine(str(split.device))
    protocol = {
        "attacks": {name: probe["knobs"]["attack"] for name, probe in probes.items()}, "batch": batch, "seed": seed, "data": split.digest(),
        "shape": list(split.shape), "classes": data.classes, "versions": facts["versions"], "device": facts["device"],
        "processor": facts["processor"], "threads": torch.get_num_threads(),
    }  # fmt: skip
    norm, eps = next(((each["norm"], each["eps"]) for each in _knobs(probes) if "eps" in each), (None, None))
    notes = [HERE if workers == 1 else ELSEWHERE, *[CALLABLE] * isinstance(module, inputs.Plain)]
    return Evaluation(
        attacks=judged, clean_bits=_clean(module, data, batch) if clean is None else clean, ids=split.ids.cpu(), y=split.y.cpu(),
        norm=norm, eps=eps, own_flags=flags, nonzero=_share(module), seconds=time.monotonic() - started, protocol=protocol, notes=notes,
    )  # fmt: skip


def _knobs(probes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [probe["knobs"]["attack"]["knobs"] for probe in probes.values()]


def _probes(found: Catalogue, attack: Any, knobs: Any, common: dict[str, Any], how: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A resolved `accuracy` probe for every attack, by a name of its own. common: knobs given once, to those attacks that take them."""
    resolver, probes = Resolver({}, found), dict[str, dict[str, Any]]()
    given, idle = {name: value for name, value in common.items() if value is not None}, set(common)
    for number, (where, table) in enumerate(_tables(attack, knobs)):
        if isinstance(table.get("use"), str):
            takes = knobs_of("attack", found.get("attack", table["use"], where).function).keys()
            if "precision" in table and "precision" in given:
                raise UserError("precision: is given twice, as an argument and among the knobs")
            table |= {name: value for name, value in ({"norm": "linf"} | given).items() if name in takes}
            idle -= takes
        try:
            resolver("attack", table, where)
            probe = resolver("probe", {"use": "accuracy", "attack": table, **{k: v for k, v in how.items() if v is not None}}, "-")
        except UserError as error:
            raise UserError(_as_arguments(str(error))) from None
        name = table["use"]
        probes[name if name not in probes else f"{name}-{number + 1}"] = probe
    if unused := sorted(idle & given.keys()):
        names = " and ".join(f'"{name}"' for name in probes)
        raise UserError(f"{unused[0]}: the attack {names} has no such knob; leave it out")
    return probes


def _tables(attack: Any, knobs: Any) -> list[tuple[str, dict[str, Any]]]:
    """Where each attack stands among the arguments, and its name with its knobs."""
    if not isinstance(knobs, Mapping | None):
        raise UserError(f'knobs: {knobs!r} is no table such as {{"steps": 20}}')
    several = not isinstance(attack, str)
    refs = list(attack) if isinstance(attack, Iterable) and not isinstance(attack, str | Mapping) else [attack]
    if several and knobs:
        raise UserError('knobs: go with one attack; of several each has its own, as in {"use": "pgd", "steps": 20}')
    if not refs:
        raise UserError("attack: none is named")
    for word, name in (("norm", "norm"), ("eps", "eps"), ("use", "attack")):
        if word in (knobs or {}):
            raise UserError(f"knobs.{word}: is an argument of its own; give it as {name}=")
    tables = []
    for number, ref in enumerate(refs):
        where = f"attack.{number}" if several else "attack"
        table = {"use": ref} if isinstance(ref, str) else dict(ref) if isinstance(ref, Mapping) else {}
        if odd := {"norm", "eps"} & table.keys():
            raise UserError(f"{where}.{min(odd)}: is one for all attacks; give it as {min(odd)}=")
        tables.append((where, table | dict(knobs or {})))
    return tables


def _as_arguments(text: str) -> str:
    """A message that names arguments as `evaluate` has them, not as dotted paths."""
    text = re.sub(r"^attack(\.\d+)?\.(norm|eps|precision): ", r"\2: ", text)
    return re.sub(r"^attack\.(?!\d)(\w+)", r"knobs.\1", text).removeprefix("-.")


def _judged(name: str, binder: Binder, probe: dict[str, Any], model: nn.Module, progress: bool | None, workers: int) -> Judgement:
    part = probe["knobs"]["attack"]
    try:
        with bar(f"{name} on {len(binder.data.test)} samples", progress) as report:
            return judgement(name, part, verdict(binder, probe, model, report, workers))
    except AttackFailure as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(str(error)) from error
        return Judgement(name, part, failure=str(error))
    except Changed as error:
        raise UserError(f"model: its forward pass in eval mode changes it: {error}") from error


def _clean(model: nn.Module, data: Data, batch: int) -> torch.Tensor:
    """Clean verdicts, bool (n,), where no attack came through."""
    assert data.test is not None
    with own_randomness(0), frozen(model):
        return torch.cat([correct(model, x, y).cpu() for x, y in batches(data.test, batch)])


def _share(model: nn.Module) -> dict[str, float]:
    """Shares of weights that are not 0: of all parameters, and of Conv, Linear and attention weights as the model uses them."""
    every, found = nonzero(model), dict[int, torch.Tensor]()
    for module in model.modules():
        names = ("weight",) if isinstance(module, (*CONV, nn.Linear)) else ATTENTION if isinstance(module, nn.MultiheadAttention) else ()
        weights = [getattr(module, name) for name in names if getattr(module, name, None) is not None]  # masked ones by torch's prune too
        found |= {id(weight): weight.detach() for weight in weights}
    prunables = sum(int(w.count_nonzero()) for w in found.values()) / sum(w.numel() for w in found.values()) if found else None
    return {name: share for name, share in (("all", every), ("prunable", prunables)) if share is not None}
