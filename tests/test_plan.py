"""Expansion: cells, steps, rewinds, loads, probes, and what is shared. Nothing runs."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from rtbench import keys, plugins
from rtbench.errors import UserError
from rtbench.planning import suite
from rtbench.planning.plan import Plan, Stage, expand
from tiny import cells, chain, of

STEPS = "recipes.run.steps"


def run(folder: Path, steps: list[dict[str, Any]], **changes: Any) -> Plan:
    """The plan of one recipe "run" without axes, measured by "clean" wherever `at` says (train and last by default)."""
    single = {"axes": {}, "recipes": {"run": {"steps": steps}}, "probes": {"clean": {"use": "accuracy"}}, "parts.loss.attack": "none"}
    return tiny.plan(folder, {**single, **changes})


def measured(plan: Plan, probe: str = "clean") -> list[Stage]:
    """The stages whose states a probe measures, in the order of the run."""
    return [plan.stages[point.key] for point in plan.points if probe in point.probes]


def weights(plan: Plan, stage: Stage) -> Stage:
    return plan.stages[stage.inputs["weights"].split("/")[0]]


INIT, TRAIN, PRUNE = {"init": "net"}, {"train": "fit"}, {"prune": "cut", "drop": 0.5}


# Axes and recipes


def test_a_recipe_expands_over_the_axes_it_mentions_in_the_order_of_the_file(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"axes.unused": [1, 2, 3]})
    assert cells(plan, "dense") == [{"adversary": "none"}, {"adversary": "pgd"}]
    assert cells(plan, "sparse") == [{"adversary": a, "drop": d} for a in ("none", "pgd") for d in (0.5, 0.9)]


def test_an_axis_of_part_names_expands_over_what_each_part_mentions(tmp_path: Path) -> None:
    plan = tiny.plan(
        tmp_path,
        {"axes.way": ["slow", "fast"], "axes.epochs": [1, 2, 3], "recipes": {"run": {"steps": [INIT, {"train": "$way"}]}}, "axes.drop": ...,
         "parts.slow": {"use": "sgd", "epochs": "$epochs"}, "parts.fast": {"use": "sgd", "steps": 5}},
    )  # fmt: skip
    assert cells(plan, "run") == [{"way": "slow", "epochs": n} for n in (1, 2, 3)] + [{"way": "fast"}]
    assert [(s.part["knobs"]["epochs"], s.part["knobs"]["steps"]) for s in of(plan, "train")] == [
        (1, None),
        (2, None),
        (3, None),
        (None, 5),
    ]


def test_axes_reach_knobs_nested_tables_lists_extra_knobs_data_and_probes(tmp_path: Path) -> None:
    plan = tiny.plan(
        tmp_path,
        {"axes": {"width": [3], "valid": [20], "attack": ["pgd"], "lr": [0.25]}, "data": {"use": "images", "valid": "$valid"},
         "recipes": {"run": {"steps": [INIT, {"train": "fit", "lr": "$lr"}]}}, "parts.net.hidden": ["$width", 7],
         "parts.loss.attack": {"use": "$attack", "norm": "l2", "eps": 1}, "probes.pgd.attack": "$attack"},
    )  # fmt: skip
    (train,) = of(plan, "train")
    assert train.net["knobs"]["hidden"] == [3, 7] and train.data["knobs"]["valid"] == 20 and train.part["knobs"]["lr"] == 0.25
    assert train.part["knobs"]["objective"]["knobs"]["attack"]["use"] == "pgd"
    assert plan.points[0].cell == {"width": 3, "valid": 20, "attack": "pgd", "lr": 0.25}


def test_an_axis_value_may_be_a_whole_part(tmp_path: Path) -> None:
    objectives = [{"use": "plain", "smooth": 0.1}, {"use": "robust", "attack": "$adversary"}]
    plan = tiny.plan(tmp_path, {"axes.objective": objectives, "parts.fit.objective": "$objective", "recipes.sparse": ...})
    assert cells(plan, "dense") == [{"objective": objectives[0]}] + [{"adversary": a, "objective": objectives[1]} for a in ("none", "pgd")]


def test_a_probe_adds_its_axes_to_the_recipes_it_measures(tmp_path: Path) -> None:
    changes = {"axes.samples": [10, 20], "probes.few": {"use": "accuracy", "samples": "$samples", "where": {"recipe": "dense"}}}
    plan = tiny.plan(tmp_path, changes)
    assert cells(plan, "dense") == [{"adversary": a, "samples": n} for a in ("none", "pgd") for n in (10, 20)]
    assert len(cells(plan, "sparse")) == 4
    assert len(of(plan, "train")) == len(of(tiny.plan(tmp_path), "train"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_plan_is_the_union_of_the_plans_of_single_cells(tmp_path: Path, data: st.DataObject) -> None:
    axes = {
        "pruner": ["cut", "lot"], "drop": [0.5, 0.9], "rate": [0.2, 0.3], "strategy": ["init", "fresh", "last"],
        "attack": ["none", "pgd"], "rounds": [0, 1, 2],
    }  # fmt: skip
    picked = {axis: data.draw(st.lists(st.sampled_from(values), min_size=1, unique=True)) for axis, values in axes.items()}
    steps = [INIT, TRAIN, {"repeat": "$rounds", "steps": [{"prune": "$pruner"}, {"rewind": "$strategy"}, {"train": "fit"}]}]
    changes = {
        "recipes": {"dense": {"steps": [INIT, TRAIN]}, "run": {"steps": steps}}, "parts.cut.drop": "$drop", "trials": 2,
        "parts.lot": {"use": "random", "drop": "$rate"}, "parts.loss.attack": "none", "probes.pgd.attack": "$attack",
    }  # fmt: skip
    whole = tiny.plan(tmp_path, {**changes, "axes": picked})
    singles = [
        tiny.plan(tmp_path, {**changes, "axes": {axis: [value] for axis, value in zip(picked, values, strict=True)}})
        for values in itertools.product(*picked.values())
    ]
    assert set(whole.stages) == {key for single in singles for key in single.stages}
    assert Counter(str(p) for p in whole.points) == Counter({str(p) for single in singles for p in single.points})
    for stage in whole.stages.values():
        assert stage.parents() <= set(whole.stages)
    order = list(whole.stages)
    assert all(order.index(parent) < order.index(key) for key, stage in whole.stages.items() for parent in stage.parents())


# What is shared


def test_cosentino2019_trains_a_dense_network_once_per_dataset_adversary_and_trial() -> None:
    rounds, trials = 20, 2
    plan = expand(suite.load("cosentino2019", None, (), trials), plugins.catalogue(), lambda part, where: part["use"])
    count = Counter(stage.verb for stage in plan.stages.values())
    # Of each dataset: dense under three adversaries, and under three as the authors ran it, where training is measured at other steps.
    assert count["train"] == 2 * trials * (3 + 3 + rounds * (3 * 3 + 3 + 3))
    # The first pruning precedes the first rewind, so the strategies share it.
    assert count["prune"] == 2 * trials * (3 * (1 + 3 * (rounds - 1)) + 3 * rounds + 3 * rounds)
    assert count["init"] == 2 * trials * (1 + rounds)  # seeds do not depend on the adversary, so fresh weights are shared too
    dense = {point.key for point in plan.points if point.recipe == "dense"}
    assert len(dense) == 2 * 3 * trials and dense <= {point.key for point in plan.points if point.recipe == "ticket" and point.round == 0}
    states = {(point.key, probe) for point in plan.points for probe in point.probes}
    lent = [stage for stage in of(plan, "probe") if stage.part["use"] == "weights"]  # the initial weights that `survivors` asks for
    assert count["probe"] == len(states) + len(lent) and len(plan.stages) == sum(count.values()) < plan.asked
    alone = 1 + rounds  # trainings of a run by itself
    assert plan.naive["train"] == 2 * trials * 3 * (1 + alone * (3 + 1 + 1))


def test_a_recipe_with_where_is_left_out_of_other_cells() -> None:
    plan = expand(suite.load("cosentino2019", "smoke"), plugins.catalogue(), lambda part, where: part["use"])
    met = {recipe: {point.cell["adversary"] for point in plan.points if point.recipe == recipe} for recipe in ("ticket", "as-run")}
    assert met == {"ticket": {"none", "fgsm", "pgd"}, "as-run": {"none", "fgsm-predicted", "pgd-predicted"}}


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ({"drop": [0.5]}, r"recipes\.dense\.where\.drop: the recipe does not depend on this axis"),
        ({"drpo": [0.5]}, r'recipes\.dense\.where: .*"drpo".*did you mean "drop"'),
        ({"drop": [0.55]}, r"recipes\.dense\.where\.drop: "),
        ({"recipe": "dense"}, r"recipes\.dense\.where\.recipe: a recipe is run in cells of the axes"),
        (3, "recipes.dense.where: 3 is not a table"),
    ],
)
def test_a_where_that_chooses_nothing_is_refused(tmp_path: Path, where: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        tiny.plan(tmp_path, {"recipes.dense.where": where})


def test_seeds_are_equal_in_every_cell_and_differ_between_steps_and_trials() -> None:
    plan = expand(suite.load("cosentino2019", "smoke", (), 3), plugins.catalogue(), lambda part, where: part["use"])
    for verb, per_trial in (("train", 1 + 2), ("prune", 2), ("init", 1 + 2), ("probe", 11)):
        assert len({stage.seed for stage in of(plan, verb)}) == 3 * per_trial
    by_trial: dict[int, set[int]] = {}
    for point in plan.points:
        by_trial.setdefault(point.trial, set()).update(plan.stages[key].seed for key in (point.key, *point.probes.values()))
    assert len(by_trial) == 3 and sum(map(len, by_trial.values())) == len(set.union(*by_trial.values()))


def test_a_new_probe_or_pruner_leaves_every_other_key_as_it_was(tmp_path: Path) -> None:
    before = tiny.plan(tmp_path)
    probe = tiny.plan(tmp_path, {"probes.density": {"use": "density", "at": ["init", "last"]}})
    pruner = tiny.plan(tmp_path, {"axes.pruner": ["cut", "random"], "recipes.sparse.steps.2.prune": "$pruner"})
    for after in (probe, pruner):
        assert set(before.stages) < set(after.stages)
    assert {stage.verb for key, stage in probe.stages.items() if key not in before.stages} == {"probe"}
    assert {stage.verb for key, stage in pruner.stages.items() if key not in before.stages} == {"prune", "train", "probe"}


def test_a_run_of_more_rounds_extends_a_shorter_one(tmp_path: Path) -> None:
    steps = [INIT, TRAIN, {"repeat": 2, "steps": [PRUNE, TRAIN]}]
    short, long = (run(tmp_path, steps, **{f"{STEPS}.2.repeat": n}) for n in (2, 5))
    assert set(short.stages) < set(long.stages) and len(of(long, "train")) == 6


def test_two_probes_of_one_part_are_one_stage(tmp_path: Path) -> None:
    plan = run(tmp_path, [INIT, TRAIN], **{"probes.again": {"use": "accuracy"}})
    assert len(of(plan, "probe")) == 1 and plan.points[0].probes["clean"] == plan.points[0].probes["again"] and plan.asked == 4


# Steps


def test_repeat_counts_rounds_and_may_be_an_axis(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"axes": {"n": [0, 3]}, "recipes": {"r": {"steps": [INIT, TRAIN, {"repeat": "$n", "steps": [PRUNE, TRAIN]}]}},
                                "probes": {"clean": {"use": "accuracy"}}, "parts.loss.attack": "none"})  # fmt: skip
    assert [(p.cell, p.round, p.step) for p in plan.points] == [({"n": 0}, 0, 1)] + [({"n": 3}, r, r + 1) for r in range(4)]


def test_repeats_nest(tmp_path: Path) -> None:
    inner = {"repeat": 3, "steps": [PRUNE]}
    plan = run(tmp_path, [INIT, {"repeat": 2, "steps": [inner, TRAIN]}])
    assert [(p.round, p.step) for p in plan.points] == [(3, 1), (6, 2)]
    assert len(of(plan, "prune")) == 6


@pytest.mark.parametrize(("target", "expected"), [("init", "init"), ("dense", "train"), ("last", "prune"), ("fresh", "init")])
def test_rewind_takes_weights_from_one_stage_and_masks_from_the_last(tmp_path: Path, target: str, expected: str) -> None:
    plan = run(tmp_path, [INIT, {**TRAIN, "as": "dense"}, PRUNE, {"rewind": target}, TRAIN])
    dense, sparse = of(plan, "train")
    (prune,) = of(plan, "prune")
    source = weights(plan, sparse)
    assert source.verb == expected and sparse.inputs.get("masks", sparse.inputs["weights"]) == prune.key
    assert ("masks" in sparse.inputs) == (target != "last")
    inits = of(plan, "init")
    assert source is {"init": inits[0], "dense": dense, "last": prune, "fresh": inits[-1]}[target]
    assert len(inits) == (2 if target == "fresh" else 1) and len({stage.seed for stage in inits}) == len(inits)


def test_rewind_last_undoes_an_earlier_rewind(tmp_path: Path) -> None:
    plan = run(tmp_path, [INIT, TRAIN, PRUNE, {"rewind": "init"}, {"rewind": "last"}, TRAIN])
    assert of(plan, "train")[1].inputs == {"weights": of(plan, "prune")[0].key}


def test_rewind_to_a_snapshot_names_it_after_a_slash(tmp_path: Path) -> None:
    fit = {"train": "fit", "as": "dense", "snapshots": ["step-5"]}
    plan = run(tmp_path, [INIT, fit, PRUNE, {"rewind": "dense/step-5"}, TRAIN])
    dense, sparse = of(plan, "train")
    assert sparse.inputs == {"weights": f"{dense.key}/step-5", "masks": of(plan, "prune")[0].key}
    assert sparse.parents() == {dense.key, of(plan, "prune")[0].key}


def test_a_name_given_twice_means_the_latest(tmp_path: Path) -> None:
    plan = run(tmp_path, [INIT, {**TRAIN, "as": "a"}, PRUNE, {**TRAIN, "as": "a"}, PRUNE, {"rewind": "a"}, TRAIN])
    assert weights(plan, of(plan, "train")[2]) is of(plan, "train")[1]


def test_knobs_of_a_step_overrule_those_of_its_part(tmp_path: Path) -> None:
    plan = run(tmp_path, [{"init": "net", "bias": False}, {"train": "fit", "lr": 0.5, "objective": "plain"}, {"train": "fit"}])
    assert [stage.part["knobs"]["lr"] for stage in of(plan, "train")] == [0.5, 0.1]
    assert of(plan, "train")[0].part["knobs"]["objective"]["use"] == "plain" and not plan.stages[plan.points[0].key].net["knobs"]["bias"]


def test_a_list_of_amounts_is_indexed_by_the_round(tmp_path: Path) -> None:
    drops = [0.5, 0.25, 0.125]
    plan = run(tmp_path, [INIT, TRAIN, {"repeat": 3, "steps": [{"prune": "cut"}]}], **{"parts.cut.drop": drops})
    assert [stage.part["knobs"]["drop"] for stage in of(plan, "prune")] == drops
    assert len({stage.key for stage in of(plan, "prune")}) == 3
    with pytest.raises(UserError, match=r"parts\.cut\.drop: has no value for round 4: the list ends before it"):
        run(tmp_path, [INIT, TRAIN, {"repeat": 4, "steps": [{"prune": "cut"}]}], **{"parts.cut.drop": drops})


def test_a_knob_that_takes_a_list_is_not_indexed(tmp_path: Path) -> None:
    prune = {"prune": "cut", "drop": 0.5, "exclude": ["head"]}
    plan = run(tmp_path, [INIT, TRAIN, prune, prune])
    assert [stage.part["knobs"]["exclude"] for stage in of(plan, "prune")] == [["head"], ["head"]]


# Load and transfer


def test_load_is_named_by_content_and_options_not_by_path(tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(b"weights")
    (tmp_path / "two.pt").write_bytes(b"weights")
    (tmp_path / "three.pt").write_bytes(b"other weights")

    def load(path: str, **options: Any) -> Stage:
        return of(run(tmp_path, [{"load": path, "net": "net", **options}, PRUNE, {"rewind": "init"}, TRAIN]), "load")[0]

    first = load("one.pt")
    assert first.key == load("two.pt").key == load(str(tmp_path / "one.pt")).key
    assert first.seed == 0 and first.inputs == {} and first.net["use"] == "mlp"
    assert list(first.files.values()) == [str(tmp_path / "one.pt")]
    others = [load("three.pt"), load("one.pt", strict=False), load("one.pt", rename={"^module.": ""}), load("one.pt", masks="nonzero"),
              load("one.pt", net={"use": "cnn"})]  # fmt: skip
    assert len({stage.key for stage in [first, *others]}) == 6


def test_an_axis_may_choose_the_checkpoint_and_its_options(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(name.encode())
    steps = [{"load": "$file", "masks": "$masks"}, TRAIN]
    plan = tiny.plan(tmp_path, {"axes": {"file": ["a.pt", "b.pt"], "masks": ["file", "ones"]}, "recipes": {"run": {"steps": steps}},
                                "parts.loss.attack": "none"})  # fmt: skip
    assert len(cells(plan, "run")) == 4 and len(of(plan, "load")) == 4


def test_init_means_what_was_loaded_and_fresh_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(b"weights")
    for target, verb in (("init", "load"), ("fresh", "init")):
        plan = run(tmp_path, [{"load": "one.pt"}, PRUNE, {"rewind": target}, TRAIN])
        assert weights(plan, of(plan, "train")[0]).verb == verb


def test_init_means_the_transferred_state_after_a_transfer(tmp_path: Path) -> None:
    plan = run(
        tmp_path, [INIT, TRAIN, {"transfer": "others"}, TRAIN, PRUNE, {"rewind": "init"}, TRAIN], **{"parts.others": {"use": "images"}}
    )
    assert weights(plan, of(plan, "train")[2]).verb == "transfer" and len(of(plan, "init")) == 1


def test_transfer_moves_to_other_data_and_keeps_weights_and_masks(tmp_path: Path) -> None:
    steps = [INIT, TRAIN, PRUNE, {"rewind": "init"}, {"transfer": "others"}, TRAIN]
    plan = run(tmp_path, steps, **{"parts.others": {"use": "images", "valid": 33}})
    (moved,) = of(plan, "transfer")
    assert moved.inputs == {"weights": of(plan, "init")[0].key, "masks": of(plan, "prune")[0].key}
    assert moved.data["knobs"]["valid"] == 33 and of(plan, "train")[1].data == moved.data and of(plan, "train")[0].data != moved.data
    assert of(plan, "train")[1].inputs == {"weights": moved.key}
    assert plan.stages[plan.points[-1].probes["clean"]].data == moved.data


def test_a_recipe_may_have_its_own_data(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"recipes.dense.data": {"use": "images", "valid": 44}})
    assert {plan.stages[p.key].data["knobs"]["valid"] for p in plan.points if p.recipe == "dense"} == {44}
    assert {plan.stages[p.key].data["knobs"]["valid"] for p in plan.points if p.recipe == "sparse"} == {10}


# Probes


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("train", ["init train", "init train prune prune train"]),
        ("prune", ["init train prune", "init train prune prune"]),
        ("init", ["init"]),
        ("first", ["init"]),
        ("last", ["init train prune prune train"]),
        ("half", ["init train prune"]),
        (0, ["init train"]),
        (2, ["init train prune prune train"]),
        (1, []),
        (["first", 0, "half"], ["init", "init train", "init train prune"]),
    ],
)
def test_at(tmp_path: Path, at: Any, expected: list[str]) -> None:
    steps = [INIT, TRAIN, {**PRUNE, "as": "half"}, PRUNE, TRAIN]
    plan = run(tmp_path, steps, **{"probes.here": {"use": "density", "at": at}})
    assert [" ".join(chain(plan, stage.key)) for stage in measured(plan, "here")] == expected


def test_probes_are_measured_after_every_training_and_at_the_end_by_default(tmp_path: Path) -> None:
    plan = run(tmp_path, [INIT, TRAIN, {**TRAIN, "as": "twice"}, PRUNE])
    assert [stage.verb for stage in measured(plan)] == ["train", "train", "prune"]
    assert [(point.step, point.round, point.order) for point in plan.points] == [(1, 0, 1), ("twice", 0, 2), (2, 1, 3)]


def test_a_name_that_only_another_recipe_has_is_no_mistake(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"recipes.sparse.steps.2.as": "cut", "probes.clean.at": "cut"})
    assert {p.recipe for p in plan.points if "clean" in p.probes} == {"sparse"}


def clean_cells(plan: Plan, recipe: str) -> list[dict[str, Any]]:
    return [point.cell for point in plan.points if point.recipe == recipe and "clean" in point.probes]


def test_where_excludes_by_axes_that_the_recipe_has(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"probes.clean.where": {"drop": 0.9, "adversary": ["pgd"]}})
    assert clean_cells(plan, "sparse") == [{"adversary": "pgd", "drop": 0.9}]
    assert clean_cells(plan, "dense") == [{"adversary": "pgd"}]
    assert len([point for point in plan.points if "pgd" in point.probes]) == 6


def test_narrowing_an_axis_leaves_where_in_peace(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"probes.clean.where": {"drop": 0.9}}, overrides=["axes.drop=[0.5, 0.2]"])
    assert clean_cells(plan, "sparse") == [] and len(cells(plan, "sparse")) == 4
    assert tiny.plan(tmp_path, {"probes.clean.where": {"drop": 0.9}}, overrides=["axes.drop.1=0.2"]).points
    assert clean_cells(tiny.plan(tmp_path, {"probes.clean.where": {"drop": 0.2}}, overrides=["axes.drop+=0.2"]), "sparse")


def test_where_may_name_recipes(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"probes.clean.where": {"recipe": "dense"}})
    assert clean_cells(plan, "sparse") == [] and len(clean_cells(plan, "dense")) == 2


def test_where_may_exclude_by_an_axis_that_only_the_probe_mentions(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, {"axes.samples": [5, 50], "probes.clean.samples": "$samples", "probes.clean.where": {"samples": 5}})
    assert clean_cells(plan, "dense") == [{"adversary": a, "samples": 5} for a in ("none", "pgd")]


def test_a_probe_kept_out_of_a_cell_adds_no_axis_and_no_mistake_there(tmp_path: Path) -> None:
    probe = {"use": "accuracy", "samples": "$samples", "where": {"drop": 0.9}}
    plan = tiny.plan(tmp_path, {"axes.samples": [5, 50], "probes.clean": probe})
    assert [cell["samples"] for cell in cells(plan, "sparse") if cell["drop"] == 0.9] == [5, 50, 5, 50]
    assert all("samples" not in cell for cell in cells(plan, "sparse") if cell["drop"] == 0.5)
    impossible = {"use": "accuracy", "attack": {"use": "pgd", "norm": "$norm", "eps": 1}, "where": {"norm": "l2"}}
    plan = tiny.plan(tmp_path, {"axes.norm": ["l2", "none at all"], "probes.clean": impossible})
    assert {cell["norm"] for cell in clean_cells(plan, "dense")} == {"l2"}


# Trials, profiles, --only, --set


def test_trials_repeat_every_cell_with_other_seeds(tmp_path: Path) -> None:
    one, three = tiny.plan(tmp_path), tiny.plan(tmp_path, {"trials": 3})
    assert len(three.stages) == 3 * len(one.stages) and set(one.stages) < set(three.stages) and three.asked == 3 * one.asked
    assert [point.trial for point in three.points[:3]] == [0, 1, 2]
    assert set(tiny.plan(tmp_path, trials=2).stages) < set(three.stages)


def test_only_keeps_recipes_and_axis_values(tmp_path: Path) -> None:
    whole = tiny.plan(tmp_path)
    assert {p.recipe for p in tiny.plan(tmp_path, only={"recipe": ["dense"]}).points} == {"dense"}
    half = tiny.plan(tmp_path, only={"recipe": ["sparse"], "drop": ["0.9"], "adversary": ["none", "pgd"]})
    assert {p.cell["drop"] for p in half.points} == {0.9} and set(half.stages) < set(whole.stages)
    assert {p.recipe for p in half.points} == {"sparse"}


def test_only_keeps_dense_networks_without_the_axis_beside_what_it_chooses(tmp_path: Path) -> None:
    kept = tiny.plan(tmp_path, only={"drop": ["0.9"], "adversary": ["pgd"]})
    assert {(p.recipe, p.cell.get("drop"), p.cell["adversary"]) for p in kept.points} == {("dense", None, "pgd"), ("sparse", 0.9, "pgd")}
    pruned = {
        "recipes.once": {"steps": [{"init": "net"}, {"train": "fit"}, {"prune": {"use": "magnitude", "drop": 0.5}}, {"train": "fit"}]}
    }
    assert {p.recipe for p in tiny.plan(tmp_path, pruned, only={"drop": ["0.9"]}).points} == {"dense", "sparse"}
    with pytest.raises(UserError, match="nothing is left"):
        tiny.plan(tmp_path, only={"recipe": ["dense"], "drop": ["0.9"]})


def test_only_spares_parts_that_are_not_needed(tmp_path: Path) -> None:
    changes = {"axes.adversary": ["none", "missing"], "parts.missing": {"use": "not-installed", "norm": "l2", "eps": 1}}
    with pytest.raises(UserError, match="not-installed"):
        tiny.plan(tmp_path, changes)
    assert tiny.plan(tmp_path, changes, only={"adversary": ["none"]}).points


def test_only_writes_values_as_toml_does(tmp_path: Path) -> None:
    changes = {"axes.bias": [True, False], "parts.net.bias": "$bias"}
    assert {p.cell["bias"] for p in tiny.plan(tmp_path, changes, only={"bias": ["false"]}).points} == {False}


def test_a_profile_and_overrides_change_the_plan(tmp_path: Path) -> None:
    smoke = tiny.plan(tmp_path, profile="smoke")
    assert {stage.part["knobs"]["epochs"] for stage in of(smoke, "train")} == {1}
    both = tiny.plan(tmp_path, profile="smoke", overrides=["parts.fit.epochs=7", "axes.drop=[0.3]"])
    assert {stage.part["knobs"]["epochs"] for stage in of(both, "train")} == {7}
    assert {stage.part["knobs"]["drop"] for stage in of(both, "prune")} == {0.3}


def test_an_axis_may_be_added_from_outside(tmp_path: Path) -> None:
    plan = tiny.plan(tmp_path, overrides=["axes.lr=[0.1, 0.2]", "parts.fit.lr=$lr"])
    assert {stage.part["knobs"]["lr"] for stage in of(plan, "train")} == {0.1, 0.2}


def test_a_checkpoint_and_a_data_set_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.pt").write_bytes(b"weights")
    asked: list[str] = []
    monkeypatch.setattr(keys, "file_digest", lambda path: asked.append(path.name) or "sha")
    tiny.plan(tmp_path, {"trials": 3, "recipes.dense.steps.0": {"load": "one.pt"}}, digests=lambda part, where: asked.append(where) or "d")
    assert sorted(asked) == ["data", "one.pt"]
