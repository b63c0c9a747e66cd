"""Attacks a model trained elsewhere: a checkpoint file, an architecture by name, one attack, one verdict per sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rtbench import keys
from rtbench.commands.study import data_root, pick_device
from rtbench.data.splits import data_digest
from rtbench.engine.bind import Binder
from rtbench.engine.provenance import machine
from rtbench.engine.run import Options, build, check_network, load_data
from rtbench.engine.state import fill, masks_of, pack, read_checkpoint, renamed
from rtbench.errors import UserError
from rtbench.live.inputs import seeded
from rtbench.live.verdict import nonzero, verdict
from rtbench.parts.kinds import knobs as knobs_of
from rtbench.parts.masks import apply_
from rtbench.planning.resolve import Resolver
from rtbench.planning.suite import override
from rtbench.plugins import Catalogue, catalogue
from rtbench.statistics import wilson
from rtbench.storage.disk import explained, write_aside


def evaluate_checkpoint(
    checkpoint: str, arch: str, dataset: str, attack: str, *, knobs: Iterable[str] = (), attack_knobs: Iterable[str] = (),
    data_knobs: Iterable[str] = (), norm: str | None = None, eps: str | None = None, samples: int | None = None, rule: str = "first",
    split: str = "test", batch: int = 512, seed: int = 0, rename: Iterable[str] = (), strict: bool = True, plugins: Iterable[str] = (),
    device: str = "auto", data: str | None = None, witness: str | None = None, workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Clean and robust accuracy of a checkpoint; see `rtbench evaluate --help` for the arguments. UserError for every mistake.

    Returns clean, robust (fractions), interval (95 % Wilson), bits ("1" robust, in the order of ids), ids, flags, seconds, passes,
    recheck (what float32 said of a search in bfloat16, None of one in float32), and what was measured: attack, norm, eps, split, samples,
    sha256 of the file, nonzero share, seed, protocol (every knob of the attack and the probe), architecture, dataset with the digest of
    its contents, versions, device, threads; and for `rtbench verify` checkpoint, rename, strict, columns (the other per-sample values),
    witness (name and digest of the file that `witness` names, where the adversarial examples are put, else None).
    """
    found, rng = catalogue(plugins), seeded(seed)
    resolver = Resolver({}, found)
    threat = {name: value for name, value in (("norm", norm), ("eps", eps)) if value is not None}
    takes = knobs_of("attack", found.get("attack", attack, "--attack").function).keys()
    if unused := sorted(threat.keys() - takes):
        raise UserError(f'--{unused[0]}: the attack "{attack}" has no such knob; leave it out')
    if witness is not None and not takes >= {"norm", "eps"}:
        raise UserError(f'--witness: the attack "{attack}" makes no adversarial examples; leave it out')
    what = {"use": attack, **table(attack_knobs, {"use": "--attack", "norm": "--norm", "eps": "--eps"}), **threat}
    measured = {"use": "accuracy", "attack": what, "split": split, "rule": rule, "batch": batch}
    measured |= {"samples": samples} if samples is not None else {}
    try:
        net = resolver("architecture", {"use": arch, **table(knobs, {"use": "--arch"})}, "--arch")
        resolver("attack", what, "--attack")
        probe = resolver("probe", measured, "-")
        images = resolver("dataset", {"use": dataset, **table(data_knobs, {"use": "--dataset"})}, "--dataset")
    except UserError as error:
        raise UserError(_as_options(str(error))) from None
    options = Options(root=data_root(data), device=pick_device(device))
    file = Path(checkpoint)
    loaded = load_data(images, found, options)
    renames = {pattern: new for pattern, _, new in (piece.partition("=") for piece in rename)}
    model, _ = network(found, net, loaded, file, renames, strict, options.device)
    binder = Binder(found, seed, rng, loaded, keep=witness is not None)
    result = _attacked(binder, probe, model, file, witness, workers)
    facts = machine(options.device)
    return {**result, "checkpoint": str(file.resolve()), "rename": renames, "strict": strict, "seed": seed, "protocol": probe,
            "architecture": net, "dataset": {**images, "digest": data_digest(loaded)},
            "versions": facts["versions"], "device": facts["device"]}  # fmt: skip


def network(found: Catalogue, net: dict[str, Any], data: Any, file: Path, renames: dict[str, str], strict: bool, device: str) -> Any:
    """(model, masks): the architecture `net` with what a checkpoint holds. UserError where it does not fit."""
    what = f'checkpoint "{file}"'
    tensors, given = read_checkpoint(file)
    with torch.random.fork_rng():
        model = build(found, net, data, torch.Generator()).to(device)
    fill(model, renamed(tensors, renames), strict, what)
    masks = masks_of(model, {name: mask.to(device) for name, mask in renamed(given, renames).items()}, "file", what)
    apply_(model, masks)
    check_network(model, data, device)
    return model, masks


def _as_options(text: str) -> str:
    """A message that names options as they are written on the command line, not as dotted paths."""
    for path, option in (("--attack.norm", "--norm"), ("--attack.eps", "--eps"), ("--attack.use", "--attack"), ("--arch.use", "--arch"),
                         ("--dataset.use", "--dataset"), ("--attack.", "--attack-knob "), ("--arch.", "--knob "),
                         ("--dataset.", "--data-knob "), ("-.", "--")):  # fmt: skip
        if text.startswith(path):
            return option + text.removeprefix(path)
    return text


def _attacked(binder: Binder, probe: dict[str, Any], model: Any, file: Path, witness: str | None, workers: int) -> dict[str, Any]:
    measured, outcome, passes, seconds, threads = verdict(binder, probe, model, workers=workers)
    robust = measured.numbers[""]
    assert robust is not None
    n = measured.about["samples"]
    attack = probe["knobs"]["attack"]
    columns = {name: column for name, column in measured.samples.items() if name not in ("ids", "robust")}
    return {
        "clean": float(measured.samples["clean"].double().mean()), "robust": robust, "interval": list(wilson(robust, n)),
        "bits": "".join(map(str, measured.samples["robust"].tolist())), "ids": measured.samples["ids"].tolist(),
        "flags": sorted(measured.flags), "seconds": round(seconds, 3), "samples": n, "split": measured.about["split"],
        "attack": attack["use"], "norm": attack["knobs"].get("norm"), "eps": attack["knobs"].get("eps"),
        "parts": {name: value for name, value in measured.numbers.items() if name},
        "recheck": None if outcome.recheck is None else str(outcome.recheck),
        "nonzero": nonzero(model), "passes": passes, "threads": threads, "sha256": keys.file_digest(file),
        "columns": {name: [_number(value) for value in column.tolist()] for name, column in columns.items()},
        "witness": None if witness is None or measured.witness is None else _written(Path(witness), pack(measured.witness)),
    }  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no infinity: null is the margin of logits that are not finite."""
    return value if math.isfinite(value) else None


def _written(path: Path, content: bytes) -> dict[str, str]:
    with explained(path, "--witness"):
        write_aside(path, content)
    return {"file": path.name, "sha256": keys.digest(content)}


def table(texts: Iterable[str], own: Mapping[str, str]) -> dict[str, Any]:
    """{"hidden": [300, 100]} from "hidden=[300,100]", each read as `--set` reads it. own: words that have an option of their own."""
    raw: dict[str, Any] = {}
    for text in texts:
        name = text.partition("=")[0]
        if "." in name or "+" in name or "=" not in text:
            raise UserError(f'"{text}" is not of the form knob=value')
        if name.strip() in own:
            raise UserError(f'"{text}": give it as {own[name.strip()]}')
        override(raw, text)
    return raw
