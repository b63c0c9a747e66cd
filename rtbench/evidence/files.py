"""Checks the result of `rtbench evaluate --output FILE`: the same checks as of a stored row, from the checkpoint and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtbench import keys
from rtbench.engine.bind import Binder
from rtbench.engine.context import Options, load_data
from rtbench.engine.state import unpack
from rtbench.errors import UserError
from rtbench.evidence.bits import COUNTS, FLOATS
from rtbench.evidence.claim import check_claim
from rtbench.evidence.folders import check_part
from rtbench.evidence.points import Tick
from rtbench.evidence.verdict import MALFORMED, Claim, Verdict
from rtbench.live.checkpoint import network
from rtbench.plugins import Catalogue
from rtbench.statistics import wilson
from rtbench.storage.results import signed

WORDS = {"robust", "clean", "interval", "bits", "ids", "flags", "samples", "split", "attack", "norm", "eps", "parts", "sha256", "columns",
         "witness", "checkpoint", "rename", "strict", "seed", "protocol", "architecture", "dataset", "nonzero", "passes"}  # fmt: skip


def verify_file(
    file: Path, found: Catalogue, options: Options, checkpoint: str | None = None, witness: str | None = None, again: int = 0,
    rng: torch.Generator | None = None, tick: Tick = lambda count: None,
) -> Verdict:  # fmt: skip
    """The verdict on one result file. checkpoint, witness: where these lie now, if not where the file says."""
    verdict = Verdict(file.name, "result")
    result = signed(file.read_bytes())
    if result is None or not result.keys() >= WORDS:
        verdict.problem("record", f"{file.name} does not match its own digest, or is no result of `rtbench evaluate --output`")
        return verdict
    verdict.what = f"accuracy under {result['attack']}"
    try:
        for kind, part in (("dataset", _plain(result["dataset"])), ("architecture", result["architecture"]), ("probe", result["protocol"])):
            check_part(kind, part, found, verdict)
        claim = None if verdict.problems else _claim(result, file, found, options, checkpoint, witness, verdict)
        if claim is not None:
            binder = Binder(found, result["seed"], torch.Generator().manual_seed(result["seed"]))
            check_claim(claim, binder, verdict, again, rng or torch.Generator().manual_seed(0), tick)
    except MALFORMED as error:
        verdict.problem("record", f"{file.name} makes no sense: {type(error).__name__}: {error}")
    return verdict


def _plain(dataset: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dataset.items() if name != "digest"}


def _claim(result: dict[str, Any], file: Path, found: Catalogue, options: Options, checkpoint: str | None, witness: str | None,
           verdict: Verdict) -> Claim | None:  # fmt: skip
    weights = Path(checkpoint or result["checkpoint"])
    if weights.is_file() and keys.file_digest(weights) != result["sha256"]:
        verdict.problem("weights", f'"{weights}" is not the checkpoint that was attacked')
        return None
    try:
        data = load_data(result["dataset"], found, options)
        model, _ = network(found, result["architecture"], data, weights, result["rename"], result["strict"], options.device)
    except UserError as error:
        verdict.problem("data" if "dataset" in str(error) else "weights", str(error))
        return None
    knobs = result["protocol"]["knobs"]
    shown = (knobs["attack"]["use"], knobs["attack"]["knobs"].get("norm"), knobs["attack"]["knobs"].get("eps"))
    if shown != (result["attack"], result["norm"], result["eps"]):
        verdict.problem("protocol", f"it shows {result['attack']} {result['norm']} {result['eps']}, its protocol says otherwise")
    samples = {name: _column(name, values) for name, values in _columns(result).items()}
    if (
        float(samples["clean"].double().mean()) != result["clean"]
        or list(wilson(result["robust"], result["samples"])) != result["interval"]
    ):
        verdict.problem("number", "clean accuracy or the interval are not those of the bits")
    alive, size = sum(int(p.count_nonzero()) for p in model.parameters()), sum(p.numel() for p in model.parameters())
    if result["nonzero"] != alive / size:
        verdict.problem("number", f"non-zero share {result['nonzero']}, measured {alive / size}")
    about = {"split": result["split"], "samples": result["samples"]}
    numbers, kept = {"": result["robust"], **result["parts"]}, _witness(result, file, witness, verdict)
    return Claim(result["protocol"], numbers, result["flags"], about, result["passes"], samples, kept, model, getattr(data, knobs["split"]),
                 result["seed"], result.get("threads"))  # fmt: skip


def _columns(result: dict[str, Any]) -> dict[str, list[Any]]:
    return {**result["columns"], "ids": result["ids"], "robust": [int(bit) for bit in result["bits"]]}


def _column(name: str, values: list[Any]) -> Tensor:
    dtype = torch.float32 if name in FLOATS else torch.int64 if name in COUNTS else torch.uint8
    return torch.tensor([-torch.inf if value is None else value for value in values], dtype=dtype)


def _witness(result: dict[str, Any], file: Path, given: str | None, verdict: Verdict) -> dict[str, Tensor] | None:
    if result["witness"] is None:
        return None
    path = Path(given) if given else file.parent / result["witness"]["file"]
    if not path.is_file():
        verdict.problem("files", f'the adversarial examples "{path}" are gone; name them with --witness')
    elif keys.file_digest(path) != result["witness"]["sha256"]:
        verdict.problem("files", f'"{path}" does not match its digest')
    else:
        return unpack(path.read_bytes())[0]
    return None
