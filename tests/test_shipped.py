"""The suites that come with rtbench: each plans under each of its profiles, and two run whole on digits, with verdicts and figures."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from pathlib import Path

import pytest

import studies
from rtbench import plugins
from rtbench.builtin.trainers.schedule import warmed
from rtbench.planning import places, suite
from rtbench.planning.plan import expand
from rtbench.ranking import figures
from rtbench.ranking.figures.states import grouped, of_plan
from rtbench.ranking.headings import ranking, validate

PROFILES = [
    (name, profile) for name, path in suite.shipped().items() for profile in (None, *tomllib.loads(path.read_text()).get("profiles", {}))
    if profile != "paper"  # which is the suite as it stands
]  # fmt: skip


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_profile_of_every_suite_plans(name: str, profile: str | None) -> None:
    loaded = suite.load(name, profile)
    validate(loaded)
    plan = expand(loaded, plugins.catalogue(), lambda part, where: part["use"])
    assert ranking(plan) and len(plan.stages) <= plan.asked
    assert len(figures.declared(plan)) == len(loaded.figures)
    if loaded.tickets:
        assert plan.claims, "a suite with tickets judges some"


@pytest.mark.parametrize("name", [name for name in suite.shipped() if name != "quick"])
def test_every_study_has_three_profiles(name: str) -> None:
    profiles = tomllib.loads(suite.shipped()[name].read_text())["profiles"]
    assert list(profiles) == ["smoke", "laptop", "paper"]
    assert all("about" in profiles[small] for small in ("smoke", "laptop")), "the page of a small profile says what it is of"
    assert suite.load(name, "paper") == suite.load(name)


@pytest.mark.parametrize("name", [name for name in suite.shipped() if suite.load(name).published])
def test_every_published_number_stands_beside_one_state_of_its_recipe(name: str) -> None:
    loaded = suite.load(name)
    points = expand(loaded, plugins.catalogue(), lambda part, where: part["use"]).points
    for entry in loaded.published:
        beside = {
            (point.recipe, point.step, point.round) for point in points
            if entry["probe"].split(".")[0] in {probe.split(".")[0] for probe in point.probes}
            and places.allowed(entry["where"], point.recipe, {"step": point.step, "round": point.round, **point.cell})
        }  # fmt: skip
        assert len(beside) == 1, (entry, beside)


@pytest.mark.parametrize("name", [name for name in suite.shipped() if suite.load(name).figures])
def test_no_line_of_a_figure_joins_trainings_on_different_schedules(name: str) -> None:
    """Such as the training that finds a mask, which is dense, and those of the tickets."""
    plan = expand(suite.load(name), plugins.catalogue(), lambda part, where: part["use"])
    for figure in figures.declared(plan):
        if figure.kind != "curve" or not figure.measured:
            continue
        for group in grouped(plan, figure, of_plan(plan)):
            trained = [plan.stages[state.keys[0]].part["knobs"] for state in group.states]
            assert len({(str(knobs["lr"]), knobs["schedule"], str(knobs["warmup"])) for knobs in trained}) == 1, (figure.name, group.label)


@pytest.mark.parametrize(("name", "part", "rates"), [
    *[(name, "final", [0.01 * (t + 1) for t in range(10)]) for name in ("boosting2019", "boosting2019-fgsm", "boosting2019-masks", "boosting2019-ratios")],
    ("boosting2019-ratios", "final-resnet", [0.05 + 0.05 * t / 10 for t in range(11)]),
    ("boosting2019-resnet", "final", [0.05 + 0.05 * t / 10 for t in range(11)]),
    ("boosting2019-robust", "final", [0.05 + 0.05 * t / 10 for t in range(11)]),
    ("boosting2019-capacity", "warm-up", [0.05 + 0.05 * t / 10 for t in range(11)]),
])  # fmt: skip
def test_warm_up_is_that_of_the_authors_code_epoch_by_epoch(name: str, part: str, rates: list[float]) -> None:
    """VGG: lr (t + 1) / 10 before epoch 10. ResNet and WRN: 0.05 + t (lr - 0.05) / 10 before epoch 11."""
    loaded = suite.load(name)
    knobs = loaded.parts[part]
    found = [warmed(knobs["lr"], 7 * t, 7, knobs["warmup"], knobs["warmup_lr"], knobs["warmup_kind"]) for t in range(13)]
    assert found == pytest.approx(rates + [0.1] * (13 - len(rates)))


def test_the_paper_s_pruning_ratios_are_its_formula() -> None:
    keep = suite.load("boosting2019-ratios").axes["keep"]
    ratios = [Fraction(98, 100) * Fraction(i, i + 10) * 2 for i in range(1, 11)]
    assert all(abs(1 - kept - float(ratio)) < 0.0091 for kept, ratio in zip(keep, ratios, strict=True))


def test_cosentino2019_runs_whole(tmp_path: Path) -> None:
    changes = [
        'axes.dataset=["digits"]', 'parts.images={use = "$dataset", valid = 200}', "parts.net.hidden=[32]", "parts.fit.steps=60", "parts.fit.every=30",
        "parts.fgsm.eps=0.1", "parts.pgd.eps=0.1", "parts.pgd.steps=3", "parts.pgd.step=0.05", "parts.valid-pgd.samples=50",
        "probes.pgd.samples=100", "probes.pgd-predicted.samples=100", "probes.aa.samples=10",
    ]  # fmt: skip
    board = studies.run("cosentino2019", tmp_path, profile="smoke", set=changes, only=["adversary=pgd", "strategy=init"])
    judged = [row for row in board.rows if row.ticket]
    tickets = [row for row in judged if row.recipe == "ticket" and row.cell["strategy"] == "init" and row.round]
    assert len(tickets) == 2 and all(row.ticket and row.ticket["verdict"] == "undecided" for row in tickets), "one trial has no spread"
    assert {row.recipe for row in board.rows} == {"ticket", "random-mask"}
    assert all(row.status == "done" for row in board.rows)
    found = {figure.name: figure for figure in board.figures}
    assert any(line.points for panel in found["robustness"].panels for line in panel.lines)
    assert any(line.points for panel in found["survivors"].panels for line in panel.lines)
    assert [len(line.points) for panel in found["training"].panels for line in panel.lines][:1] == [2], "measured after steps 30 and 60"


def test_boosting2019_lenet_runs_whole_and_stands_beside_the_paper(tmp_path: Path) -> None:
    changes = [
        'data={use = "digits", valid = 200, share = 0.3}', "parts.net={use = 'lenet', channels = [4, 4], hidden = 16, kernel = 3, padding = 1}",
        "parts.valid.samples=50", "parts.valid-loss.samples=50", "probes.clean.samples=100",
    ]  # fmt: skip
    board = studies.run("boosting2019-lenet", tmp_path, profile="smoke", set=changes, only=["recipe=boosting"])
    rows = {row.recipe: row for row in board.rows}
    assert set(rows) == {"boosting", "dense", "winning", "winning-reinitialised", "reinitialised", "random-mask"}, (
        "its controls come with a ticket"
    )
    assert rows["boosting"].published["stop"]["value"] == 11 and rows["dense"].published["clean"]["value"] == 0.9918
    assert rows["boosting"].ticket and rows["boosting"].ticket["n"] == 1
    assert board.notes[0].startswith("profile smoke: its own settings of net, mnist, search, "), "not the network of the title"
    assert board.notes[0].endswith("; the published numbers are about the suite as it stands")
