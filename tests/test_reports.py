"""Reports: every format says what the board says, survives hostile names, and is the same bytes every time."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import boards
from boards import Made
from rtbench.builtin.reports import figure, rtbench_reports, tex, text
from rtbench.builtin.reports.notes import link
from rtbench.commands.api import page_path
from rtbench.ranking.board import Board

REPORTS = {name: report for name, report in rtbench_reports().items() if name != "figures"}  # those: tests/test_figures.py
HOSTILE = '</script><img src=x onerror=alert(1)> | & % $ # _ { } ~ ^ \\ "quoted" `*'


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return boards.quick(tmp_path_factory.mktemp("quick") / "s").board(rtbench="0.1.0")


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return boards.quick(tmp_path_factory.mktemp("again") / "s").board(rtbench="0.1.0")


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return boards.tickets(tmp_path_factory.mktemp("tickets") / "s", rounds=6).board()


@pytest.fixture
def hostile(tmp_path: Path) -> Board:
    made = Made(tmp_path / "s", {"pgd": boards.attacked("pgd", "8/255")}, name=HOSTILE, axes={"a": [HOSTILE, "b"]},
                published=[{"where": {"a": HOSTILE}, "probe": "pgd", "value": 0.5, "source": HOSTILE, "caveat": HOSTILE}])  # fmt: skip
    made.share(made.state("sparse", {"a": HOSTILE}, 0).probes["pgd"], 0.5, flags=["<b>bad</b>"])
    made.store.put_failure(made.state("sparse", {"a": "b"}, 0).key, HOSTILE, "")
    return made.board(**{"host": HOSTILE})


def written(board: Board, name: str, path: Path) -> str:
    REPORTS[name](board, path / name)
    return (path / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(REPORTS))
def test_equal_boards_give_equal_bytes(name: str, quick: Board, again: Board, tmp_path: Path) -> None:
    first, second = (written(board, name, tmp_path) for board in (quick, again))
    assert first == second
    assert first.endswith("\n")
    assert "\r" not in first


def test_equal_boards_give_equal_bytes_in_another_process(quick: Board, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import boards; from rtbench.builtin.reports import html\n"
        "html(boards.quick(Path(sys.argv[1]) / 's').board(rtbench='0.1.0'), sys.argv[1] + '/other')"
    )
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    assert (tmp_path / "other").read_text(encoding="utf-8") == written(quick, "html", tmp_path)


def test_json_is_the_board(quick: Board, tmp_path: Path) -> None:
    assert json.loads(written(quick, "json", tmp_path)) == json.loads(json.dumps(quick.as_json()))


def test_csv_reads_back_as_the_records(quick: Board, tmp_path: Path) -> None:
    rows = list(csv.DictReader(written(quick, "csv", tmp_path).splitlines()))
    records = quick.records()
    assert len(rows) == len(records) == 40
    for row, record in zip(rows, records, strict=True):
        assert list(row) == list(record)
        for name, value in record.items():
            if isinstance(value, float):
                assert float(row[name]) == value
            elif isinstance(value, list):
                assert row[name] == ";".join(map(str, value))
            elif isinstance(value, bool):
                assert row[name] == str(value).lower()
            else:
                assert row[name] == ("" if value is None else str(value))


def test_csv_leaves_a_gap_for_a_missing_trial() -> None:
    assert text.field([0.5, None, 0.25]) == "0.5;;0.25"


@pytest.mark.parametrize("board", ["quick", "tickets", "hostile"])
def test_markdown_reads_back_as_the_table(board: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found: Board = request.getfixturevalue(board)
    lines = [line for line in written(found, "markdown", tmp_path).splitlines() if line.startswith("|")]
    cells = [[unescaped(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    headers, rows = found.table()
    assert cells[0] == headers
    assert cells[2:] == [[" ".join(cell.split()) for cell in row] for row in rows]
    assert all(re.fullmatch(r":?---:?|---:", cell) for cell in cells[1])


def unescaped(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell)


@given(st.text())
def test_markdown_escapes_come_back(words: str) -> None:
    escaped = text.escape(words)
    assert unescaped(escaped) == " ".join(words.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`*_]", escaped)


@pytest.mark.parametrize("board", ["quick", "tickets", "hostile"])
def test_latex_reads_back_as_the_table(board: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found: Board = request.getfixturevalue(board)
    written_ = written(found, "latex", tmp_path)
    head, body = re.search(r"\\toprule\n(.*?)\\midrule\n(.*?)\\bottomrule", written_, re.DOTALL).groups()  # type: ignore[union-attr]
    rows = [[plain(cell) for cell in re.split(r"(?<!\\) & ", line.removesuffix(" \\\\"))] for line in (head + body).splitlines()]
    headers, cells = found.table()
    assert rows == [headers, *([" ".join(cell.split()) for cell in row] for row in cells)]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", written_)
    assert columns is not None
    assert len(columns[1]) == len(headers)


def test_a_table_for_print_has_what_is_asked_for(tmp_path: Path) -> None:
    print_ = {"without": ["#", "trials", "flags", "net", "constant"], "caption": "Tickets & 5 %.", "label": "tab:main", "columns": ["pgd"]}
    found = boards.quick(tmp_path / "s", board=print_).board()
    assert found.table()[0] == ["recipe", "adversary", "pruner", "drop", "pgd linf 0.1 (n=397)"]
    text = written(found, "latex", tmp_path)
    letters = "".join(rf". \textsuperscript{{{letter}}} {flag}" for letter, flag in zip("ab", found.marks(), strict=True))
    assert rf"\caption{{Tickets \& 5 \%{letters}.}}" in text and r"\label{tab:main}" in text and "linf 1/10" not in text
    assert written(found, "markdown", tmp_path).startswith("Tickets & 5 %.\n")
    assert len(found.records()[0]) == len(boards.quick(tmp_path / "t").board().records()[0]), "for machines there is everything"


def test_what_a_row_is_stays_in_sight_of_its_last_columns(tmp_path: Path) -> None:
    """Of a wide table; page.js finds whether it is, and holds the columns whose heads have these classes."""
    page = written(boards.quick(tmp_path / "s").board(), "html", tmp_path)
    kinds = re.findall(r'<th scope="col" class="(\w+)', page)
    places = json.loads(re.search(r"places = (\[.*?\]);", page)[1])  # type: ignore[index]
    assert [kind in places for kind in kinds] == sorted((kind in places for kind in kinds), reverse=True) and "axis" in kinds
    assert '"held"' in page and re.search(r"\.wide \.held \{[^}]*position: sticky[^}]*background", page)


def test_two_suites_of_one_name_have_two_pages(tmp_path: Path) -> None:
    one, other = (replace(boards.quick(tmp_path / name).board(), origin=name) for name in ("aaa", "bbb"))
    first = page_path(tmp_path, one, {})
    assert first == tmp_path / "quick.html" == page_path(tmp_path, other, {})
    first.write_text(written(one, "html", tmp_path))
    assert page_path(tmp_path, one, {}) == first != page_path(tmp_path, other, {}) == page_path(tmp_path, other, {})
    assert page_path(tmp_path, one, {"trials": 1}) == page_path(tmp_path, other, {"trials": 1}) != first
    first.write_text("a page of before")
    assert page_path(tmp_path, other, {}) == first
    paths = [tmp_path / "a" / "x.toml", tmp_path / "b" / "x.toml", tmp_path / "a" / ".." / "a" / "x.toml"]
    suites = [replace(boards.suite({}), path=str(path)) for path in paths]
    assert suites[0].origin() == suites[2].origin() != suites[1].origin()


def plain(cell: str) -> str:
    back = {escaped: letter for letter, escaped in tex.SPECIAL.items()}
    return re.sub("|".join(map(re.escape, sorted(back, key=len, reverse=True))), lambda match: back[match[0]], cell.strip())


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_latex_leaves_no_special_character_bare(words: str) -> None:
    bare = tex.escape(words)
    for escaped in sorted(tex.SPECIAL.values(), key=len, reverse=True):
        bare = bare.replace(escaped, "")
    assert not set(bare) & set('\\{}&%$#_~^"<>|')


class Page(HTMLParser):
    """Collects elements, and fails on an element that is not closed or closed twice."""

    VOID = ("meta", "br", "img", "input", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.mark.parametrize("board", ["quick", "tickets", "hostile"])
def test_html_is_one_well_formed_file_that_loads_nothing(board: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = written(request.getfixturevalue(board), "html", tmp_path)
    page = Page(source)
    assert not page.all("img") and not page.all("link") and not page.all("iframe")
    assert len(page.all("script")) == 1
    for tag, attrs in page.elements:
        assert "src" not in attrs
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("href", "xlink:href"):
            target = attrs.get(name) or "#"
            assert target.startswith("#") or (tag == "a" and target.startswith("https://arxiv.org/"))
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", source)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        if (attrs.get("href") or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in ids


def test_html_has_what_a_reader_needs(tickets: Board, tmp_path: Path) -> None:
    page = Page(written(tickets, "html", tmp_path))
    words = " ".join(page.words)
    assert page.all("caption")
    heads = [attrs for attrs in page.all("th") if attrs.get("scope") == "col"]
    assert sum("aria-sort" in attrs for attrs in heads) == 1
    assert {"https://arxiv.org/abs/1912.02386"} == {a["href"] for a in page.all("a") if (a["href"] or "").startswith("http")}
    for sentence in ("read off a plot", "the loss is not finite at step 120", "weights kept", "How to read a row", "10000", "ℓ∞ 0.3"):
        assert sentence in words
    titles = [attrs["title"] or "" for attrs in page.all("td") if "title" in attrs]
    assert any("95 % interval" in title and "3 of 3 trials" in title and "10000 test samples" in title for title in titles)
    assert any("2 of 3 trials" in title and "–" in title for title in titles)


def test_html_rows_carry_flags_with_their_meaning(quick: Board, tmp_path: Path) -> None:
    page = Page(written(quick, "html", tmp_path))
    chips = [attrs for attrs in page.all("a") if attrs.get("class") == "flag"]
    assert len(chips) == sum(len(row.flags) for row in quick.rows)
    assert all("robust" in (attrs["title"] or "") for attrs in chips)


def test_html_shows_hostile_names_as_text(hostile: Board, tmp_path: Path) -> None:
    page = Page(written(hostile, "html", tmp_path))
    text = " ".join(" ".join(page.words).split())
    assert text.count(" ".join(HOSTILE.split())) >= 5
    assert "<b>bad</b>" in text


@pytest.mark.parametrize(("words", "urls"), [
    ("arXiv:1912.02386, Table 2", ["https://arxiv.org/abs/1912.02386"]),
    ("2002.10509v3", ["https://arxiv.org/abs/2002.10509v3"]),
    ("see https://example.org/a?b=1&c=2.", ["https://example.org/a?b=1&amp;c=2"]),
    ("javascript:alert(1) 12345.6789 3.1415", []),
    ('<a href="x">', []),
])  # fmt: skip
def test_sources_become_links(words: str, urls: list[str]) -> None:
    assert re.findall(r'href="([^"]*)"', link(words)) == urls
    assert "<a href=" not in link(words) or urls


def test_the_figure_has_a_line_per_group_that_starts_dense(quick: Board) -> None:
    y, lines = figure.lines(quick)
    assert y == "pgd"  # more rows have it than have aa
    assert len(lines) == 12
    assert {line.panel for line in lines} == {"net mlp", "net lenet"}
    assert {line.label for line in lines} == {f"{a}, {p}" for a in ("none", "pgd") for p in ("global", "layer", "random")}
    for line in lines:
        assert [round(kept, 3) for kept, _, _ in line.points] == [1.0, 0.2, 0.1, 0.02]
    dense = next(row for row in quick.rows if row.recipe == "dense" and row.cell == {"net": "mlp", "adversary": "pgd"})
    firsts = {line.points[0][1:] for line in lines if line.panel == "net mlp" and line.label.startswith("pgd")}
    assert firsts == {(dense.probes["pgd"].mean, dense.probes["pgd"].sd)}


def test_the_figure_follows_rounds_and_reads_sparsity_as_what_is_not_kept(tickets: Board) -> None:
    _, lines = figure.lines(tickets)
    assert len(lines) == 9
    for line in lines:
        assert [kept for kept, _, _ in line.points] == pytest.approx([0.8**i for i in range(len(line.points))])
    assert sorted({line.panel for line in lines}) == ["adversary fgsm", "adversary none", "adversary pgd"]


def test_the_figure_takes_the_last_of_equally_sparse_states(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"density": boards.DENSITY, "pgd": boards.attacked("pgd", "1/10")})
    for order, (density, accuracy) in enumerate([(1.0, 0.8), (0.1, 0.2), (0.1, 0.7)]):
        point = made.state("sparse", {}, 0, order)
        made.put(point.probes["density"], {"": density})
        made.share(point.probes["pgd"], accuracy)
    _, (line,) = figure.lines(made.board())
    assert line.points == [(1.0, 0.8, 0.0), (0.1, 0.7, 0.0)]


def test_no_figure_without_a_measured_sparsity(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"pgd": boards.attacked("pgd", "1/10")})
    made.share(made.state("sparse", {}, 0).probes["pgd"], 0.5)
    board = made.board()
    assert figure.lines(board)[1] == []
    assert "<figure" not in written(board, "html", tmp_path)


def test_a_board_without_a_single_result_can_be_reported(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"density": boards.DENSITY, "pgd": boards.attacked("pgd", "1/10")})
    made.state("sparse", {}, 0)
    board = made.board()
    for name in REPORTS:
        assert "made" in written(board, name, tmp_path) or name == "csv"
    assert board.table()[1] == [["–", "–", "–", "0/1", "partial"]]


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, rtbench.builtin.reports, rtbench.ranking.board; assert not {'matplotlib', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_styles_differ_until_all_are_used() -> None:
    styles: list[Any] = [figure.style(number) for number in range(18)]
    assert len(set(styles)) == 18
    assert len({(colour, dash) for colour, _, dash in styles}) == 18
