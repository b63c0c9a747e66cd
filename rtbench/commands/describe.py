"""Words about parts and results: what `parts`, `show` and `diff` print. Plain rows, no rendering."""

from __future__ import annotations

import inspect
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from rtbench.errors import unknown
from rtbench.parts.kinds import VOCABULARY, knobs, version
from rtbench.parts.knobs import Knob, Nested, OneOf, Range
from rtbench.plugins import Catalogue, Part
from rtbench.storage.store import Store


def find_parts(catalogue: Catalogue, word: str | None) -> list[Part]:
    """The parts of a kind, or of a name, or all; UserError with the near miss."""
    parts = sorted(catalogue.parts.values(), key=lambda part: (list(VOCABULARY).index(part.kind), part.name))
    if word is None:
        return parts
    kind = word.removesuffix("s") if word.removesuffix("s") in VOCABULARY else None
    found = [part for part in parts if (part.kind == kind if kind else part.name == word)]
    if not found:
        raise unknown("kind or part", word, [*VOCABULARY, *(part.name for part in parts)])
    return found


def help_line(part: Part) -> str:
    """The first sentence of a part's docstring."""
    doc = inspect.getdoc(part.function) or ""
    return " ".join(doc.split("\n\n")[0].split())


def source(part: Part) -> str:
    """Where the part's idea comes from: the citations in its docstring and its module's, else the file."""
    module = inspect.getmodule(part.function)
    texts = [inspect.getdoc(part.function) or "", (module.__doc__ if module else None) or ""]
    found = re.findall(r"(?!Source)[A-Z][^.():]*?\b(?:19|20)\d\d(?:, | )?(?:arXiv:\d{4}\.\d{4,5})?", " ".join(texts))
    ids = re.findall(r"arXiv:\d{4}\.\d{4,5}", " ".join(texts))
    return ", ".join(dict.fromkeys(ids)) or (found[0].strip(" ,") if found else "")


def knob_rows(part: Part) -> list[tuple[str, str, str, str]]:
    """(name, type with constraints, default, help) of every knob."""
    return [(knob.name, type_text(knob.annotation), default_text(knob), knob.help) for knob in knobs(part.kind, part.function).values()]


def type_text(annotation: Any) -> str:
    """A knob's type in words: "number in (0, 1]", "linf | l2", "attack", "list of whole numbers"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = type_text(args[0])
        for constraint in args[1:]:
            if isinstance(constraint, Nested):
                return f"{constraint.kind} (a part)"
            text += f" in {constraint.text}" if isinstance(constraint, Range) else ""
            text += f" (one of the {constraint.group}s)" if isinstance(constraint, OneOf) else ""
        return text
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in args if arg is not type(None))
    if origin in (list, tuple):
        return f"list of {type_text(args[0])}"
    if origin is dict:
        return f"table of {type_text(args[1])}"
    words = {"int": "whole number", "float": "number", "str": "text", "bool": "true | false", "Fraction": "exact number"}
    name = str(getattr(annotation, "__name__", annotation))
    return words.get(name, name)


def default_text(knob: Knob) -> str:
    return "required" if knob.required else "–" if knob.default is None else str(knob.default)


def heading(part: Part) -> str:
    """Kind, name, version and owner on one line."""
    return f"{part.kind} {part.name}, version {version(part.function)}, from {part.owner} {part.owner_version}".rstrip()


def chain(store: Store, key: str) -> list[dict[str, Any]]:
    """The stages behind a key, oldest first: verb, part, key, inputs, last values, flags and provenance."""
    found: dict[str, dict[str, Any]] = {}

    def visit(current: str) -> None:
        if current not in found:
            record = store.record(current)
            for ref in record["stage"]["inputs"].values():
                visit(ref.split("/")[0])
            stage, facts = record["stage"], store.provenance(current)
            found[current] = {
                "key": current, "verb": stage["verb"], "part": stage["net"] if stage["verb"] == "init" else stage["part"],
                "data": stage["data"], "net": stage["net"], "inputs": stage["inputs"], "seed": stage["seed"], "flags": record["flags"],
                "values": {name: value for _, name, value in record["records"] if not name.startswith("layer.")},
                "about": record["about"], "passes": record["passes"], "weights": record["files"].get("state.safetensors"),
                "provenance": facts,
            }  # fmt: skip

    visit(key)
    return list(found.values())


def part_text(part: dict[str, Any]) -> str:
    """A resolved part on one line, nested parts in brackets."""
    if not part:
        return ""
    words = [f"{name}={value_text(value)}" for name, value in part["knobs"].items() if value not in (None, [], {}, "")]
    return str(part["use"]) + (f"({', '.join(words)})" if words else "")


def code_text(facts: dict[str, Any]) -> str:
    """The parts that a stage used and the digests of their code, from its provenance; "" where that has none."""
    return ", ".join(f"{name} {fact['code'][:8]}" for name, fact in facts.get("parts", {}).items() if fact["code"])


def value_text(value: Any) -> str:
    """A knob's value, parts in it as above."""
    if isinstance(value, dict):
        inner = ", ".join(f"{name}: {value_text(item)}" for name, item in value.items())
        return part_text(value) if "use" in value and "knobs" in value else f"{{{inner}}}"
    return f"[{', '.join(map(value_text, value))}]" if isinstance(value, list) else str(value)


def difference(store: Store, one: str, other: str) -> list[tuple[str, str, str]]:
    """(what, in one, in other) wherever two chains differ: the n-th stage of a verb against the n-th, knob by knob, value by value.

    A stage that only one chain has is a single row.
    """
    rows = []
    left, right = numbered(chain(store, one)), numbered(chain(store, other))
    for where in dict.fromkeys([*left, *right]):
        if where not in left or where not in right:
            one_has, other_has = (part_text(side[where]["part"]) if where in side else "–" for side in (left, right))
            rows.append((where, one_has, other_has))
            continue
        a, b = flat(left[where]), flat(right[where])
        rows += [(f"{where} {name}", a.get(name, "–"), b.get(name, "–")) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return rows


def numbered(stages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The stages of a chain as "train 1", "train 2", "probe 1", in order."""
    counts: dict[str, int] = {}
    found = {}
    for stage in stages:
        counts[stage["verb"]] = counts.get(stage["verb"], 0) + 1
        found[f"{stage['verb']} {counts[stage['verb']]}"] = stage
    return found


def flat(stage: dict[str, Any]) -> dict[str, str]:
    """{"part.drop": "0.8", "value": "0.93"} for a stage."""
    found = {"seed": str(stage["seed"])}
    for name in ("part", "data"):
        _flatten(found, name, stage[name])
    for name, value in stage["values"].items():
        found[f"value {name}".rstrip()] = "–" if value is None else f"{value:.6g}"
    return found


def _flatten(found: dict[str, str], where: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(found, where if name == "knobs" else f"{where}.{name}", item)
    else:
        found[where] = str(value)
