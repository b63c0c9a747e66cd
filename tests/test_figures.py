"""Figures that a suite declares: what is refused, the points against hand-computed ones, and the files that are drawn."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import boards
import studies
from boards import Made
from rtbench import UserError
from rtbench.builtin.reports import canvas, gallery, rtbench_reports
from rtbench.builtin.reports.canvas import log_ticks
from rtbench.builtin.reports.figures import POINTS, draw, grid
from rtbench.commands import api
from rtbench.planning.plan import Plan, expand
from rtbench.planning.suite import load
from rtbench.plugins import catalogue
from rtbench.ranking.figures import Figure, Line, Point, declared
from rtbench.ranking.figures.points import front, per_epoch
from rtbench.ranking.figures.shapes import Axis, Panel
from rtbench.ranking.figures.sheet import shortened
from rtbench.statistics import student

SUITE = """
name = "drawn"
trials = 3
data = "digits"
[axes]
drop = [0.5, 0.9]
pruner = ["magnitude", "random"]
[recipes.dense]
steps = [{ init = "net" }, { train = "fit" }]
[recipes.sparse]
steps = [{ init = "net" }, { train = "fit" }, { prune = "$pruner", drop = "$drop" }, { train = "fit" }]
[probes]
density = { use = "density" }
clean = { use = "accuracy", samples = 100 }
far = { use = "density", at = "init" }
alike = { use = "overlap", from = "all", at = "last" }
[parts]
digits = { use = "digits", share = 0.2 }
net = { use = "mlp", hidden = [8] }
fit = { use = "sgd", lr = 0.2, batch = 50, epochs = 2, probes = { valid = { use = "accuracy", split = "valid" } } }
"""


def planned(tmp_path: Path, figure: str, only: dict[str, list[str]] | None = None) -> Plan:
    suite = load(studies.write(tmp_path, f"{SUITE}\n[[figures]]\n{figure}\n"))
    return expand(suite, catalogue(), lambda part, where: "0", only)


@pytest.mark.parametrize(("figure", "said"), [
    ('kind = "curv"\nx = "round"\ny = "clean"', 'figures.0.kind: no kind "curv"; did you mean "curve"'),
    ('kind = "curve"\ny = "clean"', "figures.0.x: is missing"),
    ('kind = "curve"\nx = "round"', "figures.0.y: is missing"),
    ('kind = "curve"\nx = "round"\ny = "claen"', 'figures.0.y: no probe "claen"; did you mean "clean"'),
    ('kind = "curve"\nx = "round"\ny = ["clean", "dens"]', 'figures.0.y.1: no probe "dens"; did you mean "density"'),
    ('kind = "curve"\nx = "rond"\ny = "clean"', 'figures.0.x: no probe or axis "rond"; did you mean "round"'),
    ('kind = "curve"\nx = "pruner"\ny = "clean"', 'figures.0.x: the values of axis "pruner" are no numbers'),
    ('kind = "scatter"\nx = "drop"\ny = "clean"', 'figures.0.x: no probe "drop"'),
    ('kind = "bar"\nx = "sparsity"\ny = "clean"', 'figures.0.x: no axis "sparsity"'),
    ('kind = "matrix"\nx = "drop"\ny = "alike"', "figures.0.x: a matrix has no x"),
    ('kind = "matrix"\ny = "clean"', 'figures.0.y: "clean" has no sources'),
    ('kind = "matrix"\ny = "alike"\nband = "sd"', "figures.0.band: a matrix shows numbers"),
    ('kind = "matrix"\ny = "alike"\nlog = "y"', 'figures.0.log: no logarithmic direction of a matrix "y"'),
    ('kind = "curve"\nx = "round"\ny = "clean"\nband = "std"', 'figures.0.band: no choice "std"; did you mean "sd"'),
    ('kind = "curve"\nx = "round"\ny = "clean"\nlines = ["prunr"]', 'figures.0.lines.0: no axis "prunr"; did you mean "pruner"'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\npanels = ["drop"]', 'figures.0: "drop" is used twice'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nlines = [3]', "figures.0.lines.0: 3 is not a text"),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nliens = ["pruner"]', 'figures.0.liens: no entry "liens"; did you mean "lines"'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nwhere = { pruner = "magnitud" }', 'figures.0.where.pruner: no value "magnitud"; did you mean'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nwhere = { prune = "random" }', 'figures.0.where: no axis "prune"; did you mean "pruner"'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nwhere = { round = "two" }', "figures.0.where.round: 'two' is not a number of rounds"),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nname = "a/b"', 'figures.0.name: "a/b" names files'),
    ('kind = "curve"\nx = "drop"\ny = "clean"', 'figures.0: "pruner" differs among the runs of one point; name it in lines or panels'),
    ('kind = "curve"\nx = "density"\ny = "clean"\nwhere = { recipe = "sparse" }', 'figures.0: "pruner" differs among the runs of one line'),
    ('kind = "curve"\nx = "density"\ny = "clean"\nwhere = { pruner = "random" }', 'figures.0: "recipe" differs among the runs of one line'),
    ('kind = "curve"\nx = "step"\ny = "vaild"\nlines = ["recipe", "drop", "pruner"]', 'figures.0.y: no record of training "vaild"; did you mean "valid"'),
    ('kind = "curve"\nx = "density"\ny = "far"\nlines = ["recipe", "pruner"]', 'figures.0.y: "far" is never measured beside "density"'),
    ('kind = "bar"\nx = "recipe"\ny = "clean"\nlines = ["drop", "pruner"]\nwhere = { round = 7 }', 'figures.0.y: "clean" is never measured where'),
    ('kind = "curve"\nx = "drop"\ny = "clean"\nlines = ["pruner"]\nname = "a"\n[[figures]]\nkind = "bar"\nx = "drop"\ny = "clean"\nname = "a"',
     'figures.1.name: "a" is the name of figures.0 already'),
])  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_path(figure: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        declared(planned(tmp_path, figure))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_mistakes_are_found_when_a_suite_is_planned(tmp_path: Path) -> None:
    path = studies.write(tmp_path, f'{SUITE}\n[[figures]]\nkind = "curve"\nx = "drop"\ny = "clean"\n')
    with pytest.raises(UserError, match=r"tiny\.toml: figures\.0: "):
        api.plan(path)


def test_a_figure_may_stay_empty_where_only_a_part_is_planned(tmp_path: Path) -> None:
    figure = 'kind = "bar"\nx = "drop"\ny = "clean"\nlines = ["pruner"]\nwhere = { recipe = "sparse" }'
    plan = planned(tmp_path, figure, {"recipe": ["dense"]})
    assert declared(plan, whole=False)
    with pytest.raises(UserError, match=r"figures\.0\.y: .*stay empty"):
        declared(plan, whole=True)


def made(path: Path, figures: list[dict[str, Any]], done: Callable[[str, dict[str, Any], int, int], bool] = lambda *_: True) -> Made:
    """Tickets of two pruners over three rounds, and a dense control, three trials each; the accuracy is of 100 samples.

    clean is 0.9 - 0.1 * round + 0.01 * trial, less 0.2 for "random"; density halves from round to round; the control has 0.8.
    """
    probes = {"density": boards.DENSITY, "clean": boards.ACCURACY, "pgd": boards.attacked("pgd", "1/10")}
    axes = {"pruner": ["magnitude", "random"]}
    recipes = {"ticket": {"steps": [{}]}, "dense": {"steps": [{}]}}
    found = Made(path, probes, axes=axes, recipes=recipes, trials=3, figures=figures)
    for recipe, cell in [("ticket", {"pruner": "magnitude"}), ("ticket", {"pruner": "random"}), ("dense", {})]:
        for trial in range(3):
            for order in range(3 if recipe == "ticket" else 1):
                point = found.state(recipe, cell, trial, order)
                if done(recipe, cell, trial, order):
                    clean = 0.8 if recipe == "dense" else 0.9 - 0.1 * order - 0.2 * (cell["pruner"] == "random")
                    found.put(point.probes["density"], {"": 0.5**order})
                    found.share(point.probes["clean"], clean + 0.01 * trial, 100)
                    found.share(point.probes["pgd"], clean - 0.3 + 0.01 * trial + 0.05 * order, 100)
    return found


def lines(figure: Figure, panel: int = 0) -> dict[str, Line]:
    return {line.label: line for line in figure.panels[panel].lines}


def only(path: Path, **figure: Any) -> Figure:
    (found,) = made(path / "s", [figure]).board().figures
    return found


def test_a_curve_has_a_line_per_value_and_a_level_control(tmp_path: Path) -> None:
    figure = only(tmp_path, kind="curve", x="round", y="pgd", lines=["pruner"])
    assert (figure.name, figure.title, figure.x.name, figure.head) == (
        "curve-1",
        "pgd against round of pruning",
        "round of pruning",
        "pruner",
    )
    y = figure.panels[0].y
    assert (y.name, y.unit, y.norm, y.eps) == ("pgd", "%", "linf", "0.1")
    found = lines(figure)
    assert list(found) == ["magnitude", "random", "dense"] == figure.labels()
    assert [line.style for line in found.values()] == [0, 1, 2]
    assert [point.x for point in found["random"].points] == [0, 1, 2]
    assert [point.y for point in found["random"].points] == pytest.approx([0.41, 0.36, 0.31])
    for point in found["magnitude"].points:
        assert point.n == 3 and (point.y - point.low, point.high - point.y) == pytest.approx((0.01, 0.01))  # sd of 0, 0.01, 0.02
    assert found["dense"].level and not found["random"].level
    assert [point.y for point in found["dense"].points] == pytest.approx([0.51])
    assert figure.note == "Bands: ± 1 standard deviation, 3 trials."


def test_bands_are_intervals_or_absent_where_asked(tmp_path: Path) -> None:
    interval = lines(only(tmp_path / "a", kind="curve", x="round", y="clean", lines=["pruner"], band="interval"))["random"].points[0]
    assert interval.high - interval.y == pytest.approx(4.302652729911275 * 0.01 / math.sqrt(3))  # t(0.975, 2 degrees)
    bare = only(tmp_path / "b", kind="curve", x="round", y="clean", lines=["pruner"], band="none")
    assert all(point.low is None for line in lines(bare).values() for point in line.points)
    assert bare.note == "Means over 3 trials."


def test_the_interval_is_that_of_student() -> None:
    for n, quantile in [(2, 12.7062047), (5, 2.7764451), (10, 2.2621572)]:
        assert student(2.0, n) == pytest.approx(quantile * 2 / math.sqrt(n), rel=1e-6)


@pytest.mark.parametrize(("x", "expected", "falling"), [("density", [0.25, 0.5, 1.0], True), ("sparsity", [0.0, 0.5, 0.75], False)])
def test_sparsity_and_density_are_each_other_reversed(x: str, expected: list[float], falling: bool, tmp_path: Path) -> None:
    figure = only(tmp_path, kind="curve", x=x, y="clean", lines=["pruner"])
    assert [point.x for point in lines(figure)["random"].points] == expected
    assert (figure.x.unit, figure.x.falling) == ("%", falling)
    by_y = {point.x: point.y for point in lines(figure)["magnitude"].points}
    assert by_y[expected[0]] == pytest.approx(0.71 if falling else 0.91)


def test_several_numbers_are_panels_or_lines(tmp_path: Path) -> None:
    panels = only(tmp_path / "a", kind="curve", x="round", y=["clean", "pgd"], lines=["pruner"])
    assert [panel.y.name for panel in panels.panels] == ["clean", "pgd"]
    together = only(tmp_path / "b", kind="curve", x="round", y=["clean", "pgd"], lines=["y", "pruner"])
    assert list(lines(together)) == ["clean, magnitude", "clean, random", "clean, dense", "pgd, magnitude", "pgd, random", "pgd, dense"]
    assert (together.panels[0].y.name, together.panels[0].y.norm, together.panels[0].y.unit) == ("clean, pgd", "", "%")


def test_panels_share_the_control_and_bars_stand_on_categories(tmp_path: Path) -> None:
    figure = only(tmp_path / "a", kind="bar", x="round", y="clean", panels=["pruner"])
    assert figure.x.ticks == ("0", "1", "2")
    assert [panel.title for panel in figure.panels] == ["pruner magnitude", "pruner random"]
    for number, top in enumerate([0.91, 0.71]):
        found = lines(figure, number)
        assert list(found) == ["", "dense"]
        assert [(point.x, point.y) for point in found[""].points] == [(x, pytest.approx(top - 0.1 * x)) for x in range(3)]
    last = only(tmp_path / "b", kind="bar", x="pruner", y="clean")
    assert [(p.x, p.y) for p in lines(last)[""].points] == [(0, pytest.approx(0.71)), (1, pytest.approx(0.51))]  # the last round
    assert lines(last)["dense"].level


def test_where_keeps_the_control_that_lacks_the_axis(tmp_path: Path) -> None:
    figure = only(tmp_path, kind="bar", x="recipe", y="clean", where={"pruner": "random", "round": [0]})
    assert [(p.x, p.y) for p in lines(figure)[""].points] == [(0, pytest.approx(0.71)), (1, pytest.approx(0.81))]


def test_a_scatter_shows_what_the_board_shows_and_a_shared_state_once(tmp_path: Path) -> None:
    """Two pruners that share their dense state, or do not."""
    figure = {"kind": "scatter", "x": "sparsity", "y": "clean", "lines": ["pruner"]}
    shared = made(tmp_path / "a", [figure])
    dots = [point for line in shared.board().figures[0].panels[0].lines for point in line.points]
    shared.plan.suite.board["show"] = "last"
    last = [point for line in shared.board().figures[0].panels[0].lines for point in line.points]
    ends = {(point.recipe, str(point.cell)) for point in shared.plan.points}
    assert len(last) == len(ends) < len(dots)
    points = shared.plan.points
    starts = {(p.cell["pruner"], p.trial): p.key for p in points if p.recipe == "ticket" and p.order == 0}
    for i, point in enumerate(points):
        if point.recipe == "ticket" and point.order == 0:
            points[i] = point._replace(key=starts["magnitude", point.trial])
    shared.plan.suite.board["show"] = "all"
    again = [point for line in shared.board().figures[0].panels[0].lines for point in line.points]
    assert len(again) == len(dots) - 1


def test_a_scatter_marks_its_front(tmp_path: Path) -> None:
    panel = only(tmp_path, kind="scatter", x="sparsity", y="clean", lines=["pruner"]).panels[0]
    assert [(point.x, round(point.y, 2)) for point in panel.front] == [(0.0, 0.91), (0.5, 0.81), (0.75, 0.71)]
    marked = {line.label: [point.best for point in line.points] for line in panel.lines}
    assert marked == {"magnitude": [True] * 3, "random": [False] * 3, "dense": [False]}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 48), max_size=12), st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_the_front_is_what_nobody_beats(places: list[int], x: int, y: int) -> None:
    points = [Point(float(place // 7), float(place % 7)) for place in places]
    expected = []
    for one in points:
        better = [o for o in points if x * o.x >= x * one.x and y * o.y >= y * one.y and (o.x, o.y) != (one.x, one.y)]
        expected += [] if better else [one]
    assert front(points, x, y) == sorted(expected, key=lambda point: (point.x, point.y))


def test_partial_stores_give_partial_figures_and_say_so(tmp_path: Path) -> None:
    asked = [{"kind": "curve", "x": "round", "y": "clean", "lines": ["pruner"]}]
    found = made(tmp_path / "a", asked, lambda recipe, cell, trial, order: cell.get("pruner") == "magnitude" and order < 2 and trial < 2)
    (figure,) = found.board().figures
    assert [(point.x, point.n) for point in lines(figure)["magnitude"].points] == [(0, 2), (1, 2)]
    assert list(lines(figure)) == ["magnitude"] and lines(figure)["magnitude"].style == 0
    assert figure.note.endswith("5 of 7 numbers not measured yet.")
    (empty,) = made(tmp_path / "b", asked, lambda *_: False).board().figures
    assert empty.panels == [] and empty.note == "Nothing measured yet."


def test_a_step_of_training_is_the_mean_of_its_trials(tmp_path: Path) -> None:
    found = made(
        tmp_path / "s", [{"kind": "curve", "x": x, "y": "loss", "lines": ["pruner"], "where": {"round": 1}} for x in ("step", "epoch")]
    )
    found.plan.suite.recipes["ticket"]["steps"] = [{}]
    for point in found.plan.points:
        if point.round == 1 and point.cell == {"pruner": "random"}:
            records = [[10, "loss", 1.0 + point.trial], [20, "loss", 0.5 * point.trial], [20, "valid", 0.3]]
            record = {"stage": found.plan.stages[point.key].described(), "records": records, "flags": [], "about": {},
                      "passes": {"forwards": 0, "gradients": 0}}  # fmt: skip
            found.store.put(point.key, record, {"seconds": 1.0}, {})
    steps, epochs = found.board().figures
    (line,) = steps.panels[0].lines
    assert line.label == "random"
    assert [(p.x, p.y, p.low, p.high, p.n) for p in line.points] == [(10, 2.0, 1.0, 3.0, 3), (20, 0.5, 0.0, 1.0, 3)]
    assert [p.x for p in epochs.panels[0].lines[0].points] == [1.0, 2.0]
    assert steps.note.endswith("1 of 2 lines not measured yet.")


@pytest.mark.parametrize(("knobs", "steps", "length"), [
    ({"epochs": 4}, [25, 50, 75, 100], 25.0), ({"epochs": None, "steps": 70}, [30, 60, 70], 30.0), ({"steps": 7}, [7], None), ({}, [], None),
])  # fmt: skip
def test_the_length_of_an_epoch_is_told_by_the_losses(knobs: dict[str, Any], steps: list[int], length: float | None) -> None:
    assert per_epoch(knobs, [(3, "other", 1.0), *((step, "loss", 1.0) for step in steps)]) == length


def test_figures_are_plain_data_and_part_of_the_json(tmp_path: Path) -> None:
    board = made(tmp_path / "s", [{"kind": "scatter", "x": "density", "y": "clean", "lines": ["pruner"], "name": "front"}]).board()
    (figure,) = json.loads(json.dumps(board.as_json()))["figures"]
    assert figure["name"] == "front" and figure["panels"][0]["lines"][0]["points"][0]["best"] is True
    assert "figures" not in boards.quick(tmp_path / "q", trials=1).board().as_json()


ALL = [
    {"kind": "curve", "x": "density", "y": ["clean", "pgd"], "lines": ["pruner"], "name": "curve"},
    {
        "kind": "bar",
        "x": "pruner",
        "y": "clean",
        "lines": ["round"],
        "where": {"recipe": "ticket", "round": [0, 2]},
        "name": "bar",
        "log": "y",
    },
    {"kind": "scatter", "x": "sparsity", "y": "pgd", "lines": ["pruner"], "name": "scatter", "title": "<b>Robust</b> & sparse"},
]


def test_files_are_what_their_names_say_and_the_same_every_time(tmp_path: Path) -> None:
    board = made(tmp_path / "s", ALL).board()
    for name in ("one", "two"):
        rtbench_reports()["figures"](board, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted([f"{f['name']}.{end}" for f in ALL for end in ("svg", "pdf", "png")] + ["captions.md"])
    for name in files:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes(), name
        if name.endswith(".pdf"):
            assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF") and b"CreationDate" not in content
        if name.endswith(".svg"):
            assert content.startswith(b"<?xml") and b"</svg>" in content
    with Image.open(tmp_path / "one" / "scatter.png") as image:
        image.load()
        assert image.width == round(3.35 * 300) and len(image.convert("RGB").getcolors(10**6) or []) > 10
    assert "Bands: ± 1 standard deviation, 3 trials" in (tmp_path / "one" / "captions.md").read_text().replace("\\", "")


def test_titles_of_panels_stay_inside_the_picture(tmp_path: Path) -> None:
    figure = only(tmp_path / "a", kind="curve", x="round", y=["clean", "pgd"], panels=["pruner"])
    for count in (2, 3, 4):
        panels = [replace(figure.panels[0], title="data fashion-mnist, adversary pgd, recipe random-mask")] * count
        with canvas.settings(canvas.PRINT, POINTS):
            drawn = draw(replace(figure, panels=panels))
            drawn.draw_without_rendering()
        for axes in drawn.axes:
            box = axes.title.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= drawn.bbox.x1 and "\n" in axes.get_title()


def test_a_folder_of_figures_joins_what_is_there(tmp_path: Path) -> None:
    board, found = made(tmp_path / "s", ALL[2:]).board(), catalogue()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for _ in range(2):
        api.write_report(board, found, "figures", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("out/*")) == ["captions.md", "mine.txt", "scatter.pdf", "scatter.png", "scatter.svg"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(UserError, match="name a folder"):
        api.report_text(board, found, "figures")
    with pytest.raises(UserError, match="declares no figures"):
        api.write_report(boards.quick(tmp_path / "q", trials=1).board(), found, "figures", tmp_path / "none")


def test_the_page_has_every_figure_in_both_themes(tmp_path: Path) -> None:
    board = made(tmp_path / "s", ALL).board()
    rtbench_reports()["html"](board, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [name in page for name in ("figure-curve", "figure-bar", "figure-scatter")] == [True] * 3
    assert page.count("<figure ") == 4 and "Sparsity against" not in page
    assert "&lt;b&gt;Robust&lt;/b&gt; &amp; sparse" in page and "<b>Robust" not in page
    assert "var(--series1)" in page and not re.search(r"\b0102..\b", page)
    assert not re.search(r'(fill|stroke)="(var|#)', page)  # an attribute knows no variables
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r"url\(#([^)]*)\)", page):
        assert used in ids


def test_a_figure_without_numbers_is_drawn_as_such(tmp_path: Path) -> None:
    board = made(tmp_path / "s", ALL[:1], lambda *_: False).board()
    rtbench_reports()["html"](board, tmp_path / "page.html")
    assert "Nothing measured yet." in (tmp_path / "page.html").read_text(encoding="utf-8")
    rtbench_reports()["figures"](board, tmp_path / "out")
    assert (tmp_path / "out" / "curve.pdf").read_bytes().startswith(b"%PDF")


def test_eighteen_lines_differ_without_colour_in_marker_or_dashes() -> None:
    for first in range(0, 18, 6):
        looks = [canvas.style(number)[1:] for number in range(first, first + 6)]
        assert len(set(looks)) == 6
        assert all(one[0] != other[0] and one[1] != other[1] for one, other in itertools.pairwise(looks))


def test_bars_and_levels_differ_in_more_than_colour(tmp_path: Path) -> None:
    looks = [(number % canvas.LINES, canvas.hatch(number)) for number in range(36)]
    assert len(set(looks)) == 36 and len({canvas.hatch(number) for number in range(6)}) == 6
    assert len({canvas.style(number)[:2] for number in range(36)}) == 36
    swatches = [gallery.swatch(number, "level").partition(">")[2] for number in range(6)]
    assert len(set(swatches)) == 6, "whatever the colour"
    assert len({gallery.swatch(number, "bar") for number in range(36)}) == 36
    asked = {"kind": "curve", "x": "density", "y": "pgd", "lines": ["net", "adversary", "pruner"]}
    (figure,) = boards.quick(tmp_path / "s", figures=[asked]).board().figures
    levels = [line.style for line in figure.panels[0].lines if line.level]
    drawn = gallery.section(figure)
    assert len(levels) == 4 and all(any(f'class="label{number}"' in text for text in drawn) for number in levels)


def test_panels_of_one_number_stand_in_one_row(tmp_path: Path) -> None:
    figure = only(tmp_path, kind="curve", x="round", y=["clean", "pgd"], panels=["pruner"])
    assert len(figure.panels) == 4 and grid(figure) == (2, 2)


def test_a_whole_run_draws_histograms_matrices_and_training(tmp_path: Path) -> None:
    text = (
        SUITE.replace("trials = 3", "trials = 2").replace("share = 0.2", "share = 0.1")
        + """
[probes.alive]
use = "survivors"
from = "origin"
at = "last"
bins = 10
limit = 1.0
[[figures]]
kind = "density"
y = "alive"
lines = ["pruner", "drop"]
name = "alive"
[[figures]]
kind = "matrix"
y = "alike"
name = "alike"
[[figures]]
kind = "matrix"
y = "alike.chance"
name = "chance"
[[figures]]
kind = "matrix"
y = "near"
name = "near"
[probes.near]
use = "overlap"
from = [{ recipe = "sparse", pruner = "magnitude", drop = [0.5, 0.9] }]
where = { recipe = "sparse", pruner = "magnitude" }
at = "last"
[[figures]]
kind = "curve"
x = "epoch"
y = "valid"
lines = ["pruner"]
where = { drop = 0.9 }
name = "fit"
"""
    )
    board = studies.run(studies.write(tmp_path, text), tmp_path / "store")
    alive, alike, chance, near, fit = board.figures
    assert near.x.ticks == ("0.5", "0.9") == tuple(line.label for line in near.panels[0].lines) and near.head == "drop"
    outside = {row.probes["alive.origin.outside"].mean for row in board.rows if "alive.origin" in row.probes}
    assert outside == {0.0}
    for line in alive.panels[0].lines:
        assert [point.x for point in line.points] == pytest.approx([-0.9 + 0.2 * i for i in range(10)])
        assert sum(point.y * 0.2 for point in line.points) == pytest.approx(1.0)
    dense, magnitude = lines(alive)["dense"], lines(alive)["magnitude, 0.9"]
    assert magnitude.points[4].y + magnitude.points[5].y < dense.points[4].y + dense.points[5].y  # small weights went first
    names = ["dense", "sparse-0.5-magnitude", "sparse-0.5-random", "sparse-0.9-magnitude", "sparse-0.9-random"]
    assert list(alike.x.ticks) == names and alike.head == "recipe, drop, pruner"
    cells = {(line.label, alike.x.ticks[int(point.x)]): point.y for line in alike.panels[0].lines for point in line.points}
    assert len(cells) == 25 and all(cells[name, name] == 1.0 for name in [line.label for line in alike.panels[0].lines] if name in names)
    assert cells[names[0], names[1]] == pytest.approx(0.5, abs=0.01)
    expected = {(line.label, chance.x.ticks[int(point.x)]): point.y for line in chance.panels[0].lines for point in line.points}
    assert expected[names[2], names[1]] == pytest.approx(1 / 3, abs=0.02)  # halves of everything share a quarter of three quarters
    assert cells[names[2], names[1]] == pytest.approx(1 / 3, abs=0.1)
    assert [point.x for point in lines(fit)["random"].points] == [1.0, 2.0] and fit.panels[0].y.unit == "%"
    rtbench_reports()["html"](replace(board, figures=[alive, alike]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure ") == 2 and page.count(">1.00<") == 5 and page.count(">recipe, drop, pruner<") == 1


@pytest.mark.parametrize(("sources", "rows", "short"), [
    (["ticket-0.5", "ticket-0.9"], ["0.5", "0.9"], ["0.5", "0.9"]), (["ticket-a-0.5", "ticket-a-b"], ["0.5"], ["0.5", "b"]),
    (["dense", "ticket-1"], ["dense"], ["dense", "ticket-1"]), (["ticket-0.5"], ["1"], ["ticket-0.5"]), ([], [], []),
    (["on-fgsm", "on-pgd"], ["on-fgsm", "on-pgd"], ["on-fgsm", "on-pgd"]),
    (["m-on-fgsm", "m-on-pgd"], ["on-fgsm", "on-pgd"], ["on-fgsm", "on-pgd"]),
])  # fmt: skip
def test_sources_are_called_as_rows_are(sources: list[str], rows: list[str], short: list[str]) -> None:
    assert shortened(sources, rows) == short


@pytest.mark.parametrize(("low", "high", "ticks"), [
    (0.016, 3.2, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]), (0.8, 100, [1, 2, 5, 10, 20, 50, 100]), (0.0016, 100, [0.01, 0.1, 1, 10, 100]),
    (93.2, 93.6, [93.2, 93.3, 93.4, 93.5, 93.6]),
])  # fmt: skip
def test_a_logarithmic_axis_has_few_and_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


@pytest.mark.parametrize(("name", "log", "places"), [
    ("budget", False, [3, 6]), ("training step", True, [500, 1000, 2500]), ("round of pruning", True, list(range(1, 21))),
])  # fmt: skip
def test_whole_numbers_have_whole_ticks_on_any_scale(name: str, log: bool, places: list[int]) -> None:
    panel = Panel("", Axis("clean", "%"), (Line("x", 0, tuple(Point(float(x), 0.5 + x / 1e5) for x in places)),))
    drawn = "".join(gallery.section(Figure("made", "curve", "Made", Axis(name, log=log), [panel]))).partition(f">{name}</text>")
    ticks = [float(text) for text in re.findall(r">([^<>]+)</text>", drawn[0])]
    assert len(ticks) >= 2 and all(tick.is_integer() for tick in ticks)
    assert "e1</text>" not in drawn[2], "numbers as they are, not what they have beyond a common part"
