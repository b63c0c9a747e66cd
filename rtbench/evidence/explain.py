"""One page on a number: what was run, on what, why it can be believed, what it cost. Markdown, from what the store has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rtbench.commands.describe import chain, code_text, part_text, value_text
from rtbench.engine.state import unpack
from rtbench.evaluation.recheck import Recheck
from rtbench.evidence.commands import commands
from rtbench.live.result import credited
from rtbench.parts.flags import CHANCE, meaning, sought
from rtbench.statistics import wilson
from rtbench.storage.results import SAMPLES, WITNESS, Lost
from rtbench.storage.store import Store

SHOWN = 5
"""Stages of a long chain that are shown at either end."""


def page(store: Store, key: str) -> str:
    """The page on a stage; Lost where its record or that of a stage behind it is not sound."""
    stages = chain(store, key)
    stage, record = stages[-1], store.record(key)
    samples = unpack(store.samples_bytes(key))[0] if SAMPLES in record["files"] else {}
    sections = [f"# {_title(stage)}", _ran(stages), _what(stage, samples)]
    if stage["verb"] == "probe":
        sections += [_verdict(stage, samples), _why(stage, record, samples)]
    else:
        sections.append(_measured(store, key))
    return "\n\n".join([*sections, _cost(stages, samples), commands(store, stages, _attack(stage))])


def _title(stage: dict[str, Any]) -> str:
    attack = _attack(stage)
    under = f" under {attack['use']}" if attack and attack["use"] != "none" else ""
    value = stage["values"].get("")
    share = "" if value is None else f": {value:.2%}" if stage["about"].get("samples") else f": {value:.6g}"
    return f"{stage['verb']} {stage['part'].get('use', '')}{under}{share}"


def _attack(stage: dict[str, Any]) -> dict[str, Any] | None:
    found = stage["part"].get("knobs", {}).get("attack")
    return found if isinstance(found, dict) and "use" in found else None


def _threat(stage: dict[str, Any]) -> bool:
    return "eps" in ((_attack(stage) or {}).get("knobs") or {})


def _ran(stages: list[dict[str, Any]]) -> str:
    """The chain in words, and the protocol of the attack with every knob."""
    steps = [f"{n}. {stage['verb']} {_short(stage['part'])} (`{stage['key'][:8]}`)" for n, stage in enumerate(stages, 1)]
    if len(steps) > 2 * SHOWN + 1:
        steps[SHOWN:-SHOWN] = [f"{SHOWN + 1}. … {len(steps) - 2 * SHOWN} more, which `rtbench show` lists"]
    attack = _attack(stages[-1])
    rows = [("attack", f"{attack['use']}, version {attack['version']}")] if attack else []
    rows += [(name, "–" if value is None else value_text(value)) for name, value in attack["knobs"].items()] if attack else []
    protocol = "\n\nThe attack, every knob:\n\n" + _table(("knob", "value"), rows) if rows else ""
    return "## What was run\n\n" + _rows(stages[-1]["provenance"]) + "\n".join(steps) + protocol


def _rows(facts: dict[str, Any]) -> str:
    """The rows of a board that the run which made the stage wanted it for; "" where its provenance does not say."""
    lines = []
    for row in facts.get("rows", [])[:SHOWN]:
        place = [f"recipe {row['recipe']}", *(f"{axis} = {value_text(value)}" for axis, value in row["cell"].items())]
        place += [f"step {row['step']}", f"round {row['round']}", f"trial {row['trial'] + 1} of {row['trials']}"]
        lines.append(f"suite {row['suite']}{', profile ' + row['profile'] if row['profile'] else ''}: {', '.join(place)}")
    more = len(facts.get("rows", [])) - SHOWN
    lines += [f"and {more} more rows"] if more > 0 else []
    return "Made for " + "; ".join(lines) + ". Other runs may show it too.\n\n" if lines else ""


def _short(part: dict[str, Any]) -> str:
    return part_text({**part, "knobs": {name: value for name, value in part["knobs"].items() if name != "attack"}}) if part else ""


def _what(stage: dict[str, Any], samples: dict[str, Tensor]) -> str:
    data, about = stage["data"], stage["about"]
    rows = [("data", f"{part_text(data)}, contents {data.get('digest', '?')[:16]}")]
    if about.get("samples"):
        ids = samples["ids"].tolist() if "ids" in samples else []
        shown = f", ids {', '.join(map(str, ids[:5]))}{', …' if len(ids) > 5 else ''}" if ids else ""
        rows.append(("samples", f"{about['samples']} of {about.get('split', '?')}{shown}"))
    rows += [(f"measured {role}", f"{ref}, sha256 {stage['provenance'].get(role, '?')[:16]}") for role, ref in stage["inputs"].items()]
    return "## On what\n\n" + _table(("", ""), rows)


def _verdict(stage: dict[str, Any], samples: dict[str, Tensor]) -> str:
    """The numbers; of an attack who broke what, and how close it was."""
    values = [(name or "the value", f"{value:.6g}") for name, value in stage["values"].items() if value is not None]
    text = "## The verdict\n\n"
    if not {"robust", "clean"} <= samples.keys():
        return text + _table(("", ""), values)
    robust, clean, n = int(samples["robust"].sum()), int(samples["clean"].sum()), len(samples["robust"])
    low, high = wilson(robust / n, n)
    inner = {name: samples[f"robust.{name}"].bool() for name in stage["values"] if f"robust.{name}" in samples}
    credit = credited("the attack", samples["clean"].bool(), samples["robust"].bool(), inner) if clean != robust else []
    rows = [("wrong clean", str(n - clean)), *((f"broken by {entry.attack}", str(entry.broke)) for entry in credit)]
    text += f"{robust} of {n} samples hold: {robust / n:.2%}, 95 % interval {low:.2%} to {high:.2%} (Wilson). "
    text += f"Clean accuracy is {clean / n:.2%}."
    text += "\n\n" + _table(("of the samples", "number"), [*rows, ("robust", str(robust))])
    if others := [(name, value) for name, value in values if name in stage["values"] and f"robust.{name}" not in samples]:
        text += "\n\n" + _table(("number", "value"), others)
    if "clean.margin" in samples and robust:
        lowest = float(samples["clean.margin"][samples["robust"].bool()].min())
        text += f"\n\nThe least clear robust sample has a clean margin of {lowest:.3g} (logit of its label minus the next)."
    return text


def _why(stage: dict[str, Any], record: dict[str, Any], samples: dict[str, Tensor]) -> str:
    """Flags and their meaning, what else was looked for, and what can be checked again."""
    lines = [f"- **{flag}**: {meaning(flag)}" for flag in stage["flags"]] or ["- No flag was raised."]
    asked = [CHANCE] if "clean" in samples else []
    asked += [*(sought("judge") if _threat(stage) else []), *(sought("engine") if "forwards" in samples else [])]
    looked = [flag for flag in asked if flag not in stage["flags"]]
    lines += [f"- Looked for and not found: {', '.join(looked)}."] if looked else []
    attack = _attack(stage)
    if attack and _threat(stage):
        lines.append(
            "- Every verdict was given in float32, eval mode, at a point inside the exact ball of "
            f"{attack['knobs']['norm']} {attack['knobs']['eps']} and the box [0, 1]; a failed attack would have no number."
        )
        kept = f"kept, {record['sizes'][WITNESS]} bytes" if WITNESS in record["files"] else "not kept (`rtbench run --witness` would)"
        lines.append(f"- Adversarial examples of the broken samples are {kept}. That the others are robust rests on the attack's strength.")
    if {"exact.asked", "exact.held"} <= samples.keys():
        recheck = Recheck(samples["exact.asked"].bool(), samples["exact.held"].bool())
        lines.append(f"- Of the first survivors {recheck}. Their verdicts stay those of the search.")
    facts = stage["provenance"]
    if facts:
        versions = ", ".join(f"{name} {number}" for name, number in {**facts["versions"], **facts.get("plugins", {})}.items())
        lines.append(f"- Seed {stage['seed']}; {versions}; Python {facts['python']}.")
        if code := code_text(facts):
            lines.append(f"- Digests of the code of its parts: {code}. `rtbench plan` says where a part was edited since.")
        lines.append(f"- {facts['processor']}, {facts['threads']} threads, device {facts['device']}, finished {facts['finished']}.")
    return "## Why it can be believed\n\n" + "\n".join(lines)


def _measured(store: Store, key: str) -> str:
    """What probes of the store say about a state."""
    rows = []
    for other in store.finished():
        try:
            record = store.record(other)
        except Lost:
            continue
        if record["stage"]["verb"] == "probe" and key in {ref.split("/")[0] for ref in record["stage"]["inputs"].values()}:
            value = next((value for _, name, value in record["records"] if not name), None)
            attack = record["stage"]["part"]["knobs"].get("attack")
            under = f" under {part_text(attack)}" if isinstance(attack, dict) and attack["use"] != "none" else ""
            rows.append((f"{record['stage']['part']['use']}{under}", "–" if value is None else f"{value:.6g}", f"`{other[:8]}`"))
    return "## What it measures\n\n" + (_table(("probe", "value", "key"), sorted(rows)) if rows else "Nothing was measured on it.")


def _cost(stages: list[dict[str, Any]], samples: dict[str, Tensor]) -> str:
    def row(name: str, some: list[dict[str, Any]]) -> tuple[str, str, str, str]:
        seconds = [stage["provenance"].get("seconds") for stage in some]
        passes = [str(sum(stage["passes"][word] for stage in some)) for word in ("forwards", "gradients")]
        return name, "?" if None in seconds else f"{sum(seconds):.2f}", passes[0], passes[1]

    rows = [row("this stage", stages[-1:])] + ([row("all before it", stages[:-1])] if stages[:-1] else [])
    text = "## What it cost\n\n" + _table(("", "seconds", "forwards", "gradients"), rows)
    if stacked := sum(stage["provenance"].get("stack", 1) > 1 for stage in stages):
        text += (
            f"\n\n{stacked} of these stages trained its network and others as one (`--stack`): its seconds are its share of what all took."
        )
    if "forwards" in samples:
        robust = samples["robust"].bool()
        spent = {"robust": samples["forwards"][robust], "broken": samples["forwards"][~robust & samples["clean"].bool()]}
        words = [f"{int(torch.median(column))} for a {name} one" for name, column in spent.items() if len(column)]
        text += f"\n\nForwards of one sample, median: {', '.join(words)}." if words else ""
    return text + "\n\nEnergy was not measured."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
