"""Which numbers of a board are shares of samples, to be shown in percent."""

from __future__ import annotations

from rtbench.planning.plan import Plan
from rtbench.storage.index import Row as Found


def accuracies(plan: Plan, found: dict[str, Found]) -> set[str]:
    """Names whose every value on the board is a share of samples, also those of accuracies that nothing is measured of yet."""
    shares: dict[str, bool] = {}
    planned: set[str] = set()
    for probe, key in ((probe, key) for point in plan.points for probe, key in point.probes.items()):
        told = retold(plan, key)
        planned |= {probe} if plan.stages[key].part["use"] == "accuracy" else {f"{probe}.{sub}" for sub in told}
        if key in found:
            apart = found[key].about.get("distances", ())
            own = set(found[key].values).difference(apart) if found[key].about.get("samples") else told
            for sub, value in found[key].values.items():
                name = f"{probe}.{sub}" if sub else probe
                shares[name] = shares.get(name, True) and sub in own and (value is None or 0 <= value <= 1)
    return {name for name, share in shares.items() if share} | (planned - shares.keys())


def retold(plan: Plan, key: str) -> set[str]:
    """The numbers of a `convergence` that are accuracies which training measured on the way: "at.valid", "epoch-1.valid"."""
    part = plan.stages[key].part
    if part["use"] != "convergence":
        return set()
    trained = [stage.part["knobs"].get("probes") for stage in plan.trainings(key, last=True)]
    found = [item for probes in trained if isinstance(probes, dict) for item in probes.items()]
    uses = [(name, probe.get("use") if isinstance(probe, dict) else None) for name, probe in found]  # a plugin's may be anything
    others = {name for name, use in uses if use != "accuracy"}
    return {f"{place}.{name}" for place in ("at", *part["knobs"]["after"]) for name, _ in uses if name not in others}
