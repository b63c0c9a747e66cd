"""The contract that every part must pass, whoever wrote it. `rtbench check` prints it; a plugin's own tests are three lines:

    import pytest, rtbench

    @pytest.mark.parametrize("result", rtbench.check("my-pruner"), ids=str)
    def test_contract(result):
        assert result.ok, result.reason

Parts are run as the engine runs them, on a small network and scikit-learn's digits, with small valid knobs where they have no
defaults. What cannot be checked here, such as a dataset that is not on this machine, is skipped, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from rtbench.commands.describe import find_parts
from rtbench.errors import UserError, unknown
from rtbench.parts.kinds import knobs as declared_knobs
from rtbench.plugins import Catalogue
from rtbench.plugins import catalogue as installed
from rtbench.testing import architectures, attacks, datasets, declared, objectives, probes, pruners, reports, trainers
from rtbench.testing.result import Broken, Result, Skip, sealed
from rtbench.testing.sample import Subject

__all__ = ["Result", "check"]

KINDS: dict[str, ModuleType] = {
    "dataset": datasets, "architecture": architectures, "attack": attacks, "objective": objectives, "trainer": trainers,
    "pruner": pruners, "probe": probes, "report": reports,
}  # fmt: skip


def check(name: str | None = None, catalogue: Catalogue | None = None, knobs: dict[str, Any] | None = None) -> Iterator[Result]:
    """Checks every part, those of a kind, or those called `name`: one result per check and part, made as they are asked for.

    catalogue: all that is installed if not given. knobs: of a single part, to be used instead of those chosen here; it has to be
    named. Raises UserError for an unknown name, naming the nearest, and for knobs that the part does not have or take.
    """
    found = catalogue if catalogue is not None else installed()
    clashes = {key: text for key, text in found.clashes.items() if name in (None, key[0], f"{key[0]}s", key[1])}
    parts = find_parts(found, name)
    subjects = [Subject(part, found, dict(knobs or {})) for part in parts if (part.kind, part.name) not in clashes]
    if knobs:
        _refuse(subjects, name, knobs)
    return _results(subjects, clashes)


def _refuse(subjects: list[Subject], name: str | None, given: dict[str, Any]) -> None:
    """UserError unless the knobs are those of one part."""
    if len(subjects) != 1:
        raise UserError(f"knobs are given for one part at a time, and {name or 'no name'} means {len(subjects)} parts")
    part = subjects[0].part
    known = declared_knobs(part.kind, part.function)
    for knob in given:
        if knob not in known:
            raise unknown("knob", knob, known, part.name)
    try:
        subjects[0].resolve()
    except Skip as error:
        raise UserError(str(error)) from None


def _results(subjects: list[Subject], clashes: dict[tuple[str, str], str]) -> Iterator[Result]:
    for (kind, name), text in clashes.items():
        yield Result(kind, name, "It is the only part of its kind with this name", False, text)
    for subject in subjects:
        yield from _checked(subject)
        subject.memo.clear()  # large networks and datasets


def _checked(subject: Subject) -> Iterator[Result]:
    """All results of one part."""
    part = subject.part
    for test in declared.CHECKS:
        yield _result(subject, test)
    try:
        with sealed():
            subject.resolve()
            getattr(KINDS[part.kind], "prepare", Subject.resolve)(subject)
    except Skip as error:
        yield Result(part.kind, part.name, f"skipped: {error}", True, str(error), skipped=True)
        return
    except Exception:
        pass  # every check that needs what failed here says so
    for test in KINDS[part.kind].CHECKS:
        yield _result(subject, test)


def _result(subject: Subject, test: Callable[[Subject], None]) -> Result:
    line = Result(subject.part.kind, subject.part.name, (test.__doc__ or test.__name__).strip().rstrip("."), True)
    try:
        with sealed():
            test(subject)
    except Skip as error:
        return line._replace(reason=str(error), skipped=True)
    except (Broken, UserError) as error:
        return line._replace(ok=False, reason=str(error))
    except Exception as error:
        return line._replace(ok=False, reason=f"{type(error).__name__}: {error}")
    return line
