"""Checks stored results again: from weights, data, protocol and adversarial examples, with one forward per sample.

What is robust cannot be shown without attacking; `again` samples are. Everything else that a row says is recomputed, and every way in
which it may have been changed since is a problem with a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from rtbench.engine.bind import Binder
from rtbench.engine.context import Context, Options, load_data
from rtbench.engine.loop import Loop
from rtbench.engine.state import unpack
from rtbench.engine.verbs import VERBS
from rtbench.errors import UserError
from rtbench.evidence.bits import check_again
from rtbench.evidence.claim import check_claim
from rtbench.evidence.curves import check_curve
from rtbench.evidence.files import verify_file
from rtbench.evidence.folders import check_inputs, check_stage
from rtbench.evidence.points import Tick
from rtbench.evidence.verdict import MALFORMED, Claim, Verdict
from rtbench.planning.plan import Stage
from rtbench.plugins import Catalogue
from rtbench.storage.results import SAMPLES, WITNESS, Lost
from rtbench.storage.store import Store

__all__ = ["Verdict", "verify_file", "verify_store"]


def verify_store(
    store: Store, found: Catalogue, options: Options, keys: Iterable[str] = (), again: int = 0, rng: torch.Generator | None = None,
    started: Callable[[str, int], None] = lambda key, total: None, tick: Tick = lambda count: None,
) -> list[Verdict]:  # fmt: skip
    """A verdict for every finished probe of a store, or those of `keys`, with all stages behind it.

    again: samples of each row that are attacked again, drawn from `rng`. started: called with each row and how many forwards it takes.
    """
    checker = _Checker(store, found, options, again, rng or torch.Generator().manual_seed(0), started, tick)
    chosen = list(keys) or store.finished()
    return [verdict for key in chosen if (verdict := checker.row(key, bool(keys))) is not None]


class _Checker:
    def __init__(self, store: Store, found: Catalogue, options: Options, again: int, rng: torch.Generator,
                 started: Callable[[str, int], None], tick: Tick) -> None:  # fmt: skip
        self.store, self.found, self.options = store, found, options
        self.again, self.rng, self.started, self.tick = again, rng, started, tick
        self.known: dict[str, tuple[dict[str, Any] | None, Verdict]] = {}
        """Records of stages that were looked at, and what was found."""

    def row(self, key: str, asked: bool) -> Verdict | None:
        """The verdict on one stage; None for a sound one that is no probe, unless it was asked for."""
        verdict = Verdict(key, "stage")
        try:
            return self._row(verdict, asked)
        except MALFORMED as error:
            verdict.problem("record", f"of {key} or of a stage behind it makes no sense: {type(error).__name__}: {error}")
            return verdict

    def _row(self, verdict: Verdict, asked: bool) -> Verdict | None:
        key = verdict.key
        record = self._stage(key, verdict)
        if record is None:
            return verdict
        stage = record["stage"]
        verdict.what = f"{stage['verb']} {stage['part'].get('use', '')}".strip()
        if stage["verb"] != "probe":
            return verdict if asked or verdict.problems else None
        absent = bool(verdict.unsaid)
        parents = self._parents(key, record, verdict)
        check_inputs(self.store, key, record, parents, self.found, verdict)
        if not verdict.problems and not absent:  # what does not even have its files, or its parts, is not measured on
            try:
                self._measured(record, verdict)
            except Lost as error:
                verdict.unsaid.append(f"{error}; run its suite again to have it checked")
        return verdict

    def _stage(self, key: str, verdict: Verdict) -> dict[str, Any] | None:
        """The record of a stage; its problems, and those of all stages behind it, become the verdict's."""
        if key not in self.known:
            own = Verdict(key, "")
            self.known[key] = None, own
            record = check_stage(self.store, key, self.found, own)
            if record is not None and record["stage"]["verb"] != "probe" and None in self._parents(key, record, own).values():
                record = None
            self.known[key] = record, own
        record, own = self.known[key]
        for line in own.problems:
            verdict.problem(*line.split(": ", 1))
        verdict.unsaid += [text for text in own.unsaid if text not in verdict.unsaid]
        return record

    def _parents(self, key: str, record: dict[str, Any], verdict: Verdict) -> dict[str, dict[str, Any] | None]:
        """The records of the inputs, checked; None for one that is not there or not sound."""
        found: dict[str, dict[str, Any] | None] = {}
        for parent in {str(ref).split("/")[0] for ref in record["stage"]["inputs"].values()}:
            if self.store.folder(parent).is_dir():
                found[parent] = self._stage(parent, verdict)
            else:
                found[parent] = None
                verdict.problem("parent", f"{parent}, an input of {key}, is not in the store")
        return found

    def _measured(self, record: dict[str, Any], verdict: Verdict) -> None:
        described, key = record["stage"], verdict.key
        stage = Stage(**{name: value for name, value in described.items() if name != "protocol"})
        rng = torch.Generator().manual_seed(stage.seed)
        try:
            data = load_data(stage.data, self.found, self.options)
            context = Context(stage, self.store, self.found, self.options, data, rng, Loop(), {"forwards": 0, "gradients": 0})
            model, _ = context.load()
        except Lost:
            raise
        except (UserError, RuntimeError, OSError) as error:
            verdict.problem("data" if "data" in str(error) else "weights", " ".join(str(error).split()))
            return
        if stage.part["use"] not in ("accuracy", "craft", "curve"):
            self._again(context, record, verdict)
            return
        if SAMPLES not in record["files"]:
            verdict.problem("samples", f"the record lists no {SAMPLES}, which every such probe keeps")
            return
        numbers = {name: value for _, name, value in record["records"]}
        if [[0, name, value] for name, value in numbers.items()] != record["records"]:
            verdict.problem("number", "the record has more than one number of a name")
        witness = unpack(self.store.witness_bytes(key))[0] if WITNESS in record["files"] else None
        samples = unpack(self.store.samples_bytes(key))[0]
        points = samples.pop("points", None) if stage.part["use"] == "craft" else None
        threads = self.store.provenance(key).get("threads")
        claim = Claim(stage.part, numbers, record["flags"], record["about"], record["passes"], samples, witness, model,
                      getattr(data, stage.part["knobs"]["split"]), stage.seed, threads, points)  # fmt: skip
        verdict.what = f"{stage.part['use']} under {claim.attack['use']}"
        self.started(key, 2 * len(samples.get("ids", ())))
        if stage.part["use"] == "curve":
            check_curve(claim, verdict, self.tick)
        else:
            check_claim(claim, Binder(self.found, stage.seed, rng, data), verdict, self.again, self.rng, self.tick)

    def _again(self, context: Context, record: dict[str, Any], verdict: Verdict) -> None:
        """A probe without bits of an attack of its own: measured again where that costs little."""
        if _attacks(context.stage.part) and not context.stage.borrowed():
            verdict.unsaid.append("it attacks and kept no bits per sample that could be checked")
            return
        result = VERBS["probe"](context)
        kept = unpack(self.store.samples_bytes(verdict.key))[0] if SAMPLES in record["files"] else {}
        near = check_again(kept, result.samples or {}, verdict)
        if {name: value for _, name, value in record["records"]}.keys() != (result.numbers or {}).keys():
            verdict.problem("number", "it has other numbers than the probe gives")
        for _, name, value in record["records"]:
            now = (result.numbers or {}).get(name)
            if value != now and (value is None or now is None or abs(value - now) > 1e-6 * abs(now) + near):
                verdict.problem("number", f"{name or 'the value'} is {value}, measured again {now}")
        if (record["flags"], record["about"]) != (sorted(result.flags), result.about or {}):
            verdict.problem("flags", f"it says {record['flags']} {record['about']}, measured again {sorted(result.flags)} {result.about}")


def _attacks(part: Any) -> bool:
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return (isinstance(part, dict) and "eps" in part) or any(_attacks(value) for value in values)
