"""The worst case over all attacks run: brute force from the verdicts, incomplete where one is missing, shown, ranked by, hidden."""

from __future__ import annotations

import csv
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import boards
from boards import ACCURACY, DENSITY, Made, attacked
from rtbench.commands.api import report_text
from rtbench.engine.state import pack
from rtbench.errors import UserError
from rtbench.plugins import catalogue
from rtbench.ranking.headings import validate
from rtbench.ranking.worst import groups, meant, names
from rtbench.statistics import wilson
from rtbench.storage.index import Index, verdicts
from rtbench.terminal.screen import board_table, show_table

NAME = "worst.linf.1/10"
PROBES = {"density": DENSITY, "clean": ACCURACY, "fgsm": attacked("fgsm", "1/10"), "pgd": attacked("pgd", "0.1"),
          "aa": attacked("autoattack", "1/10")}  # fmt: skip
ATTACKS = ["fgsm", "pgd", "aa"]


def seen(draw: random.Random, sizes: dict[str, int]) -> dict[str, tuple[list[int], list[int]]]:
    """Ids in some order and verdicts of each attack, which saw `sizes` of 400 samples."""
    chosen = {probe: draw.sample(range(1000, 1400), size) for probe, size in sizes.items()}
    return {probe: (ids, [int(draw.random() < 0.8) for _ in ids]) for probe, ids in chosen.items()}


def brute(found: dict[str, tuple[list[int], list[int]]]) -> tuple[float, int]:
    by_id = [dict(zip(ids, bits, strict=True)) for ids, bits in found.values()]
    shared = set.intersection(*map(set, by_id))
    return sum(all(bits[i] for bits in by_id) for i in shared) / len(shared), len(shared)


def test_it_is_the_share_that_withstood_every_attack_on_samples_that_all_saw(tmp_path: Path) -> None:
    made, draw = Made(tmp_path / "s", PROBES, trials=3), random.Random(0)
    expected = []
    for trial in range(3):
        point, found = made.state("sparse", {}, trial), seen(draw, {"fgsm": 400, "pgd": 301, "aa": 128})
        for probe, (ids, bits) in found.items():
            made.verdicts(point.probes[probe], ids, bits, ["zero-gradient"] if probe == "pgd" and trial == 1 else None)
        made.share(point.probes["clean"], 0.9)
        made.put(point.probes["density"], {"": 0.1})
        expected.append(brute(found))
    board = made.board()
    worst = board.rows[0].probes[NAME]
    assert worst.values == [share for share, _ in expected] and worst.samples == min(n for _, n in expected)
    assert worst.mean == pytest.approx(sum(worst.values) / 3) and worst.n == 3 and worst.sd > 0 and worst.missing == []
    assert worst.interval == wilson(worst.mean, worst.samples)
    assert (worst.attack, worst.norm, worst.eps, worst.split) == ("fgsm + pgd + aa", "linf", "1/10", "test")
    assert worst.flags == board.rows[0].probes["pgd"].flags == ["zero-gradient"] and board.rows[0].probes["aa"].flags == []
    assert f"worst linf 0.1 (n={worst.samples})" in board.table()[0]


@given(st.lists(st.integers(-(2**60), 2**60), unique=True, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_verdicts_are_read_as_they_were_packed(ids: list[int], draw: random.Random) -> None:
    import numpy as np
    import torch

    bits = [draw.randrange(2) for _ in ids]
    columns = {"ids": torch.tensor(ids), "robust": torch.tensor(bits, dtype=torch.uint8), "forwards": torch.ones(3)}
    found = verdicts(pack(columns))
    assert found is not None and np.frombuffer(found[0], "<i8").tolist() == ids
    assert np.unpackbits(np.frombuffer(found[1], np.uint8))[: len(ids)].tolist() == bits
    as_bool = verdicts(pack({**columns, "robust": torch.tensor(bits).bool()}))
    assert as_bool == found
    for odd in ({"ids": torch.tensor(ids)}, {**columns, "robust": torch.zeros(len(ids) + 1, dtype=torch.uint8)},
                {**columns, "robust": torch.zeros(len(ids))}, {"robust.1/10": torch.zeros(3).byte(), "ids": torch.arange(3)}):  # fmt: skip
        assert verdicts(pack(odd)) is None


def two(path: Path, **changes: Any) -> Made:
    """Two rows, two trials; in the second row the last attack failed in one trial."""
    made = Made(path, PROBES, trials=2, axes={"a": [0, 1]}, **changes)
    for a in range(2):
        for trial in range(2):
            point = made.state("sparse", {"a": a}, trial)
            made.put(point.probes["density"], {"": 0.1})
            made.share(point.probes["clean"], 0.9)
            for probe, bits in (("fgsm", [1, 1, 1, 0]), ("pgd", [1, 1, 0, 1]), ("aa", [1, 0, 1, 1])):
                if a == 1 and trial == 1 and probe == "aa":
                    made.store.put_failure(point.probes[probe], 'attack "autoattack" raised RuntimeError: boom', "")
                else:
                    made.verdicts(point.probes[probe], [7, 8, 9, 10], bits, ["masked-gradient"] if a == 0 and probe == "aa" else None)
    return made


def test_a_failed_attack_makes_it_incomplete_never_a_number(tmp_path: Path) -> None:
    board = two(tmp_path / "s").board()
    rows = {row.cell["a"]: row for row in board.rows}
    assert rows[0].probes[NAME].mean == 0.25 and rows[0].probes[NAME].values == [0.25, 0.25]
    told = json.loads(json.dumps(rows[1].as_json(), allow_nan=False))["probes"][NAME]
    assert (told["mean"], told["sd"], told["interval"], told["missing"], told["values"]) == (None, None, None, ["aa"], [0.25, None])
    assert told["over"] == ["fgsm", "pgd", "aa"]
    place = [column.name for column in board.layout()].index(NAME)
    assert [cells[place] for cells in board.text() if "failed" in cells] == ["incomplete"]
    assert board.incomplete() == {"worst linf 0.1": ["aa"]}


def test_a_missing_attack_and_an_incomplete_ensemble_count_as_missing(tmp_path: Path) -> None:
    for probe, flags in (("fgsm", None), ("aa", ["incomplete"])):
        made = Made(tmp_path / probe, PROBES, trials=1)
        point = made.state("sparse", {}, 0)
        for name in ATTACKS:
            if flags or name != probe:
                made.verdicts(point.probes[name], [1, 2], [1, 0], flags if name == probe else None)
        worst = made.board().rows[0].probes[NAME]
        assert worst.mean is None and worst.missing == [probe]


def test_nothing_is_said_where_nothing_ran_or_nothing_is_in_common(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, trials=1)
    point = made.state("sparse", {}, 0)
    assert NAME not in made.board().rows[0].probes
    for number, name in enumerate(ATTACKS):
        made.verdicts(point.probes[name], [number], [1])
    board = made.board()
    worst, place = board.rows[0].probes[NAME], [column.name for column in board.layout()].index(NAME)
    assert worst.mean is None and worst.missing == [] and board.text()[0][place] == "–"


def test_only_accuracy_under_one_threat_on_one_split_belongs_together() -> None:
    def part(use: str, attack: Any, **knobs: Any) -> dict[str, Any]:
        return {**attacked("pgd", "1/10"), "use": use, "knobs": {"attack": attack, **knobs}}

    pgd = attacked("pgd", "1/10")["knobs"]["attack"]
    wide = attacked("pgd", "2/10")["knobs"]["attack"]
    round_ = attacked("pgd", "1/10", norm="l2")["knobs"]["attack"]
    parts = {
        "a": part("accuracy", pgd), "b": part("accuracy", pgd, split="test"), "valid": part("accuracy", pgd, split="valid"),
        "valid2": part("accuracy", pgd, split="valid"), "wide": part("accuracy", wide), "l2": part("accuracy", round_),
        "curve": part("curve", pgd), "transfer": part("transfer", pgd), "clean": ACCURACY, "density": DENSITY,
    }  # fmt: skip
    assert groups(parts) == {NAME: ["a", "b"], f"{NAME}.valid": ["valid", "valid2"]}


def test_probes_that_kept_no_verdicts_stay_out(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", PROBES, trials=2)
    for trial in range(2):
        point = made.state("sparse", {}, trial)
        made.verdicts(point.probes["fgsm"], [1, 2], [1, 0])
        made.verdicts(point.probes["pgd"], [1, 2], [0, 1])
        made.share(point.probes["aa"], 0.1)
    worst = made.board().rows[0].probes[NAME]
    assert worst.attack == "fgsm + pgd" and worst.values == [0.0, 0.0]
    assert not any("worst" in name for name in boards.quick(tmp_path / "q").board().rows[0].probes)


@pytest.mark.parametrize("rank", ["worst", NAME, ["worst", "pgd"]])
def test_it_can_be_ranked_by(tmp_path: Path, rank: Any) -> None:
    made = Made(tmp_path / "s", PROBES, trials=1, axes={"a": [0, 1, 2]}, board={"rank": rank})
    for a, fgsm in enumerate(([1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0])):
        point = made.state("sparse", {"a": a}, 0)
        for probe in ATTACKS:
            made.verdicts(point.probes[probe], list(range(200)), 50 * fgsm if probe == "fgsm" else [1] * 200)
        made.share(point.probes["clean"], 0.9)
        made.put(point.probes["density"], {"": 0.1})
    board = made.board()
    assert [row.cell["a"] for row in board.rows] == [1, 2, 0] and board.rank[0] == NAME
    assert [cells[0] for cells in board.text()] == ["1", "2", "3"] and "ranked by worst linf 0.1" in board.caption()
    records = board.records()
    assert [row["rank"] for row in records] == [1, 2, 3]
    for row, record in zip(board.rows, records, strict=True):
        over = row.probes[NAME].over
        assert record[f"{NAME}.keys"] == [" + ".join(row.keys[probe][0] for probe in over)] and len(over) > 1


def test_a_name_that_could_be_two_columns_is_refused(tmp_path: Path) -> None:
    probes = {**PROBES, "l2a": attacked("pgd", "1/2", norm="l2"), "l2b": attacked("autoattack", "1/2", norm="l2")}
    made = Made(tmp_path / "s", probes, board={"rank": ["pgd", "worst"]})
    made.state("sparse", {}, 0)
    assert names(made.plan) == [NAME, "worst.l2.1/2"]
    with pytest.raises(UserError, match=r'board.rank.1: "worst" could be worst.linf.1/10, worst.l2.1/2; name one'):
        made.board()
    assert meant(made.plan, "worst.l2.1/2", "board.rank") == "worst.l2.1/2"
    with pytest.raises(UserError, match=r'no column "worst.l2.1/3"; did you mean "worst.l2.1/2"'):
        meant(made.plan, "worst.l2.1/3", "board.rank")


def test_no_probe_may_take_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"probes.worst"):
        validate(boards.suite({"worst": ACCURACY}))


def test_columns_show_or_hide_it(tmp_path: Path) -> None:
    for number, (columns, shown) in enumerate(((None, [NAME]), (["clean"], []), (["worst", "clean"], [NAME]), ([NAME], [NAME]))):
        board = two(tmp_path / str(number), board={} if columns is None else {"columns": columns}).board()
        assert [name for name in board.columns if name.startswith("worst")] == shown
        assert NAME in board.rows[0].probes and ("worst: robust against every attack" in board.caption()) == bool(shown)


def test_every_report_has_it_and_marks_the_flagged_number(tmp_path: Path) -> None:
    board, found = two(tmp_path / "s").board(), catalogue()
    texts = {format: report_text(board, found, format) for format in ("json", "csv", "markdown", "latex", "html")}
    file = io.StringIO()
    show_table(board_table(board), file)
    for text in (file.getvalue(), texts["markdown"]):
        assert "worst linf 0.1 (n=4)" in text and "incomplete" in text and "25.0 ± 0.0ᵃ" in text and "100.0 ± 0.0ᵃ" not in text
        assert "worst linf 0.1" in text and "without aa" in text and "ᵃ masked-gradient:" in text
    assert r"25.0 $\pm$ 0.0\textsuperscript{a}" in texts["latex"] and r"\textsuperscript{a} masked-gradient" in texts["latex"]
    page = texts["html"]
    assert '<a href="#flag-masked-gradient" title="masked-gradient: An attack' in page and 'title="without aa">incomplete' in page
    assert 'id="flag-masked-gradient"' in page and ">worst<small>ℓ∞ 0.1 · n=4</small>" in page and "<dt>worst</dt>" in page
    table = {row["a"]: row for row in csv.DictReader(io.StringIO(texts["csv"]))}
    assert table["0"][NAME] == "0.25" and table["1"][NAME] == "" and table["1"][f"{NAME}.missing"] == "aa"
    assert table["0"][f"{NAME}.flags"] == "masked-gradient" == table["0"]["aa.flags"] and "pgd.flags" not in table["0"]
    assert json.loads(texts["json"])["rows"][0]["probes"]["aa"]["flags"] == ["masked-gradient"]


def test_marks_stand_only_beside_the_numbers_that_they_concern(tmp_path: Path) -> None:
    board = two(tmp_path / "s").board()
    place = {column.name: i for i, column in enumerate(board.layout())}
    flagged = next(cells for row, cells in zip(board.shown(), board.text(), strict=True) if row.flags)
    assert [name for name in ("clean", *ATTACKS, NAME) if flagged[place[name]].endswith("ᵃ")] == ["aa", NAME]
    assert flagged[place["flags"]] == "masked-gradient"


def test_a_damaged_samples_file_is_no_verdict(tmp_path: Path) -> None:
    made = two(tmp_path / "s")
    key = made.plan.points[0].probes["aa"]
    (made.store.folder(key) / "samples.safetensors").write_bytes(b"x" * 300)
    assert made.board().rows[-1].probes[NAME].missing or made.board().rows[0].probes[NAME].missing
    index = Index(made.store)
    assert key in index.corrupt and key not in index.bits([key])
    index.close()


def test_a_board_of_a_thousand_rows_is_quick(tmp_path: Path) -> None:
    made, draw = Made(tmp_path / "s", PROBES, trials=1, axes={"a": list(range(150))}), random.Random(0)
    for a in range(150):
        point = made.state("sparse", {"a": a}, 0)
        for probe, (ids, bits) in seen(draw, {"fgsm": 300, "pgd": 300, "aa": 100}).items():
            made.verdicts(point.probes[probe], ids, bits)
    made.board()
    started = time.monotonic()
    made.board()
    assert time.monotonic() - started < 150 / 1000 * 2 * 5  # five times what it may take on an idle core
