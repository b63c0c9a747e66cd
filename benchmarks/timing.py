"""One timed attack, ours or pyautoattack's; and a log of measurements that are made once."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtbench.data.splits import Split
from rtbench.engine.bind import Binder
from rtbench.engine.loop import Loop
from rtbench.engine.shares import shared
from rtbench.parts.noise import CounterNoise
from rtbench.parts.threats import Threat
from rtbench.planning.resolve import Resolver
from rtbench.plugins import catalogue

WHAT = ("case", "data", "net", "train", "eps", "norm", "samples", "epochs", "batch", "threads", "workers", "batches", "device")
"""The options that a measurement depends on."""
Entry = dict[str, Any]


class Log:
    """Measurements by (name, repeat), in memory and, line by line, in the file --out."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.about = {name: getattr(chosen, name) for name in WHAT}
        self.file = Path(chosen.out) if chosen.out else None
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file and self.file.exists() else []
        found = [json.loads(text) for text in lines if text.endswith("}}")]  # a killed run may leave half a line
        self.done: dict[tuple[str, int], Entry] = {(e["name"], e["repeat"]): e for e in found if e["about"] == self.about}

    def once(self, name: str, number: int, ask: Callable[[], Entry]) -> Entry:
        """What `ask` returns, at least "seconds", unless it is known."""
        if (name, number) not in self.done:
            entry = {"name": name, "repeat": number, **ask(), "about": self.about}
            self.done[name, number] = entry
            if self.file:
                with self.file.open("a", encoding="utf-8") as out:
                    out.write("\n" * (out.tell() > 0) + json.dumps(entry))
        entry = self.done[name, number]
        rest = "  ".join(f"{word} {value}" for word, value in entry.items() if word not in ("name", "repeat", "about", "seconds", "robust"))
        print(f"{number} {name:<14} {entry['seconds']:10.5g} s  {rest}", flush=True)
        return entry


def ours(model: nn.Module, x: Tensor, y: Tensor, chosen: argparse.Namespace, precision: str, exact: str = "", workers: int = 1) -> Entry:
    """exact: the bits that float32 found, to count what bfloat16 missed. workers: processes of one thread; 1 is this one."""
    wanted = {"use": "autoattack", "norm": chosen.norm, "eps": chosen.eps, "precision": precision}
    part = Resolver({}, catalogue())("attack", wanted, "--attack")
    judged = shared(Binder(catalogue(), 0, torch.Generator()).judged(part), model, (), part, workers)
    split = Split(x, y, torch.arange(len(y)).to(y.device))
    started = time.perf_counter()
    found = judged.attacked(model, split, torch.arange(len(y)), Loop(), chosen.batch)
    entry: Entry = {"seconds": time.perf_counter() - started}
    entry |= {name: round(float(bits.double().mean()), 4) for name, bits in found.inner.items()}
    entry["robust"] = "".join(map(str, found.robust.int().tolist()))
    if exact:
        both = list(zip(exact, entry["robust"], strict=True))
        broken = int(found.clean.sum()) - exact.count("1")
        entry |= {"missed": both.count(("0", "1")), "broken": broken, "broken by bf16 only": both.count(("1", "0"))}
    return entry


def theirs(model: nn.Module, x: Tensor, y: Tensor, chosen: argparse.Namespace, batch: int, seed: int) -> Entry:
    from rtbench_autoattack import official

    started = time.perf_counter()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    outcome = official(model, x, y, Threat(chosen.norm, Fraction(chosen.eps)), CounterNoise(seed, torch.arange(len(x))), batch=batch)
    entry: Entry = {"seconds": time.perf_counter() - started}
    return entry | {name: round(float((bits & right).double().mean()), 4) for name, bits in outcome.outcomes.items()}
