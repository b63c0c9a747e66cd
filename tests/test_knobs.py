"""Knobs: what a value becomes, which values are refused and with which words, and what the part is called with."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from rtbench import keys
from rtbench.commands.describe import part_text
from rtbench.errors import UserError
from rtbench.parts import kinds
from rtbench.parts.annotations import fits, readable, takes_list
from rtbench.parts.knobs import Attack, Nested, OneOf, Probe, Range, check, check_all, decode, fraction, knobs_of

EPS = Annotated[Fraction, Range("[0, inf)")]
SHARE = Annotated[float, Range("(0, 1]")]


def nest(kind: str, value: Any, where: str) -> Any:
    return {"use": value, "kind": kind}


def checked(annotation: Any, value: Any) -> Any:
    return check(annotation, value, "here", nest)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3), (float, 3, 3.0), (float, 0.5, 0.5), (float, "8/255", 8 / 255), (float, " 1 / 4 ", 0.25), (float, "1e-3", 0.001),
        (str, "a", "a"), (bool, True, True), (Fraction, 0.3, "3/10"), (Fraction, "8/255", "8/255"), (Fraction, 2, "2"), (Fraction, 1e-05, "1/100000"),
        (Fraction, "0.5", "1/2"), (Fraction, "-1/2", "-1/2"), (Any, {"a": [1]}, {"a": [1]}), (int | None, None, None), (int | None, 3, 3),
        (int | float, 3, 3), (float | int, 3, 3.0), (int | str, "a", "a"), (list[int], [1, 2], [1, 2]), (tuple[int, ...], [1], [1]),
        (tuple[int, ...], (), []), (tuple[int, str], [1, "a"], [1, "a"]), (dict[str, float], {"a": 1}, {"a": 1.0}), (Literal["a", 1], 1, 1),
        (list[list[int]], [[1], []], [[1], []]), (SHARE, 1, 1.0), (EPS, 0, "0"), (SHARE | None, None, None), (Attack, "pgd", {"use": "pgd", "kind": "attack"}),
        (dict[str, Probe], {"a": "acc"}, {"a": {"use": "acc", "kind": "probe"}}), (list[Attack] | None, ["x"], [{"use": "x", "kind": "attack"}]),
        (Annotated[float | Literal["auto"], Range("[0, 1]")], "auto", "auto"), (Annotated[Fraction | None, Range("(0, 1]")], "1/3", "1/3"),
    ],
)  # fmt: skip
def test_a_value_becomes_canonical_json(annotation: Any, value: Any, expected: Any) -> None:
    found = checked(annotation, value)
    assert found == expected and type(found) is type(expected) and keys.canonical(found) == keys.canonical(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (int, 1.0, "here: 1.0 is not a whole number"), (int, True, "here: True is not a whole number"), (int, "1", "here: '1' is not a whole number"),
        (float, True, "here: True is not a number"), (float, math.nan, "here: nan is not a finite number"),
        (float, -math.inf, "here: -inf is not a finite number"), (float, "abc", "here: 'abc' is not a number or a fraction such as \"8/255\""),
        (float, "nan", "not a number or a fraction"), (float, "1e999", "is not a finite number"), (float, 10**400, "is not a finite number"),
        (float, [1], "here: [1] is not a number"), (float, None, "here: None is not a number"), (str, 1, "here: 1 is not a text"),
        (bool, 1, "here: 1 is not true or false"), (Fraction, "8/0", "here: '8/0' is not a number or a fraction"), (Fraction, True, "here: True is not"),
        (Fraction, math.inf, "here: inf is not a number"), (Fraction, "1e999999999", "is not a number"), (Fraction, "1/2/3", "is not a number"),
        (Fraction, "", "is not a number"), (SHARE, 0, "here: 0.0 is outside (0, 1]"), (SHARE, 1.0000001, "is outside (0, 1]"),
        (EPS, "-1/255", "here: -1/255 is outside [0, inf)"), (Annotated[list[int], Range("[1, 9]")], [3, 10], "here.1: 10 is outside [1, 9]"),
        (Annotated[dict[str, list[float]], Range("[0, 1]")], {"a": [0, 2]}, "here.a.1: 2.0 is outside [0, 1]"),
        (list[int], 3, "here: 3 is not a list"), (list[int], "ab", "here: 'ab' is not a list"), (list[int], [1, "x"], "here.1: 'x' is not a whole number"),
        (tuple[int, int], [1], "here: [1] is not a list of 2"), (dict[str, int], [1], "here: [1] is not a table"),
        (dict[str, int], {"a": "x"}, "here.a: 'x' is not a whole number"), (Literal["linf", "l2"], "linff", 'here: no choice "linff"; did you mean "linf"?'),
        (Literal[1, 2], True, 'here: no choice "True"'), (int | None, "x", "here: 'x' is not a whole number"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_in_one_sentence(annotation: Any, value: Any, text: str) -> None:
    with pytest.raises(UserError) as error:
        checked(annotation, value)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("[0, 1)", [0, 0.5, Fraction(999, 1000)], [1, -1e-9]), ("(0, inf)", [1e-300, 10**400, Fraction(10**400)], [0, -1, math.inf, math.nan]),
     ("[-1, 1]", [-1, 1], [1.0000001, -2]), ("[-inf, inf]", [-1e308, 0], [math.inf, -math.inf, math.nan])],
)  # fmt: skip
def test_range_is_an_interval(text: str, inside: list[Any], outside: list[Any]) -> None:
    assert all(value in Range(text) for value in inside) and not any(value in Range(text) for value in outside)
    assert repr(Range(text)) == f'Range("{text}")'


@pytest.mark.parametrize("text", ["0, 1", "[0 1]", "[a, 1]", "", "[0, 1"])
def test_what_is_no_interval_is_refused_when_it_is_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an interval|could not convert"):
        Range(text)


@given(st.fractions(max_denominator=10**6))
def test_fractions_survive_exactly(value: Fraction) -> None:
    assert fraction(str(value), "") == value == decode(EPS, checked(Fraction, str(value)), lambda kind, inner: inner)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_as_the_decimal_that_is_written(value: float) -> None:
    assert fraction(value, "") == Fraction(repr(value)) and float(fraction(value, "")) == value
    assert checked(float, value) == value and checked(float, repr(value)) == value
    assert keys.canonical(checked(float, -0.0)) == "0.0"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    max_leaves=6,
)
ANNOTATIONS = [
    int, float, str, bool, EPS, SHARE, int | None, Literal["a", 2], list[float], tuple[int, str], tuple[str, ...], dict[str, int | list[float]],
    Annotated[list[Fraction] | None, Range("[0, 1]")], Fraction | list[Fraction] | None, bool | int | float | str | list[int] | list[float],
]  # fmt: skip


@given(st.sampled_from(ANNOTATIONS), ANYTHING)
def test_any_value_is_either_refused_or_canonical_and_then_stays_so(annotation: Any, value: Any) -> None:
    try:
        found = checked(annotation, value)
    except UserError:
        return
    assert checked(annotation, found) == found
    keys.canonical(found)
    decode(annotation, found, lambda kind, inner: inner)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (EPS, "8/255", Fraction(8, 255)), (Fraction | None, None, None), (Fraction | None, "1/3", Fraction(1, 3)), (int, 3, 3), (str, "1/3", "1/3"),
        (tuple[int, ...], [1, 2], (1, 2)), (tuple[Fraction, str], ["1/2", "1/2"], (Fraction(1, 2), "1/2")), (list[int], [1], [1]),
        (list[Fraction] | None, ["1/2"], [Fraction(1, 2)]), (int | list[Fraction], ["1/2"], [Fraction(1, 2)]),
        (Literal["1/2"] | Fraction, "1/2", "1/2"), (Annotated[float | Literal["auto"], Range("[0, 1]")], "auto", "auto"),
        (dict[str, Attack], {"a": {"use": "pgd"}}, {"a": ("attack", "pgd")}), (Attack | None, {"use": "pgd"}, ("attack", "pgd")), (Attack | None, None, None),
        (list[Attack], [{"use": "pgd"}], [("attack", "pgd")]), (dict[str, int] | Attack, {"use": "pgd"}, ("attack", "pgd")),
    ],
)  # fmt: skip
def test_a_part_is_called_with_what_its_annotation_says(annotation: Any, value: Any, expected: Any) -> None:
    found = decode(annotation, value, lambda kind, inner: (kind, inner["use"]))
    assert found == expected and type(found) is type(expected)


def part(
    model: Any, *, keep: Annotated[float | None, Range("(0, 1]"), OneOf("amount")] = None, count: Annotated[int | None, OneOf("amount")] = None,
    scope: Literal["global", "layer"] = "global", needed: int, free=3,  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    """Keep some.

    keep: share to keep
    needed: what it cannot do without
    """


def resolved(**given: Any) -> dict[str, Any]:
    return check_all(knobs_of(part), given, "parts.cut", nest)


def test_knobs_are_the_keyword_only_parameters() -> None:
    knobs = knobs_of(part)
    assert list(knobs) == ["keep", "count", "scope", "needed", "free"]
    assert [name for name, knob in knobs.items() if knob.required] == ["needed"]
    assert (
        knobs["keep"].help == "share to keep"
        and knobs["scope"].help == ""
        and knobs["keep"].group == "amount"
        and knobs["scope"].group is None
    )


def test_every_knob_is_resolved_defaults_included() -> None:
    assert resolved(keep="1/2", needed=1) == {"keep": 0.5, "count": None, "scope": "global", "needed": 1, "free": 3}


@pytest.mark.parametrize(
    ("given_knobs", "text"),
    [
        ({"kep": 0.1, "needed": 1}, 'parts.cut.kep: no knob "kep"; did you mean "keep"?'),
        ({"keep": 0.1}, "parts.cut.needed: is missing; this part needs it: what it cannot do without"),
        ({"needed": 1}, "parts.cut: give exactly one of keep, count, not none"),
        ({"needed": 1, "keep": 0.1, "count": 3}, "parts.cut: give exactly one of keep, count, not keep and count"),
        ({"needed": 1, "keep": 1.5}, "parts.cut.keep: 1.5 is outside (0, 1]"),
    ],
)
def test_unknown_missing_clashing_and_impossible_knobs(given_knobs: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        resolved(**given_knobs)
    assert str(error.value) == text


def test_knobs_written_elsewhere_are_named_there() -> None:
    with pytest.raises(UserError, match=r"^steps\.2\.keep: 7\.0 is outside"):
        check_all(knobs_of(part), {"keep": 7, "needed": 1}, "parts.cut", nest, {"keep": "steps.2.keep"})


def test_attacks_under_a_threat_model_have_its_norm_and_eps() -> None:
    assert list(kinds.knobs("attack", tiny.pgd)) == ["norm", "eps", "steps"] and list(kinds.knobs("attack", tiny.none)) == []
    assert all(knob.required for name, knob in kinds.knobs("attack", tiny.pgd).items() if name != "steps")


@pytest.mark.parametrize("annotation", [*ANNOTATIONS, Attack, dict[str, Probe], Any])
def test_types_a_suite_can_write(annotation: Any) -> None:
    assert readable(annotation)


@pytest.mark.parametrize("annotation", [list, dict, tuple, bytes, object, dict[int, str], list[bytes], int | bytes, Range, "int"])
def test_types_no_suite_can_write(annotation: Any) -> None:
    assert not readable(annotation)


def test_which_knobs_take_lists() -> None:
    lists = [list[int], tuple[str, ...], Annotated[list[int], Range("[0, 1]")], int | list[int], Any]
    assert all(map(takes_list, lists)) and not any(map(takes_list, [int, SHARE, dict[str, int], Attack, str | None, Literal["list"]]))


def test_a_nested_part_fits_only_what_names_a_part() -> None:
    assert fits(Annotated[Any, Nested("attack")], {"use": "x"}) and not fits(Attack, {"a": 1}) and not fits(Attack, "x")


def test_a_part_is_told_on_one_line_with_the_parts_in_it() -> None:
    loss = {"use": "robust", "version": 1, "knobs": {"attack": {"use": "none", "version": 1, "knobs": {}}}}
    knobs = {
        "objective": loss,
        "probes": {"valid": {"use": "loss", "version": 2, "knobs": {"objective": loss}}},
        "drops": [1, 2],
        "x": None,
    }
    told = "sgd(objective=robust(attack=none), probes={valid: loss(objective=robust(attack=none))}, drops=[1, 2])"
    assert part_text({"use": "sgd", "version": 1, "knobs": knobs}) == told
