"use strict";
const table = document.querySelector(".scroll table"), body = table.tBodies[0], rows = [...body.rows];
const filter = document.getElementById("filter"), count = document.getElementById("count");

// A cell sorts by its number if it has one, else by its text; empty cells come last in either direction.
function value(row, column) {
  const cell = row.cells[column], text = cell.textContent.trim();
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return text === "" || text === "–" ? null : text;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

table.querySelectorAll("thead button").forEach((button) => button.addEventListener("click", () => {
  const head = button.parentElement, column = head.cellIndex, numbers = head.classList.contains("probe");
  const next = head.getAttribute("aria-sort") ? (head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending")
    : (numbers ? "descending" : "ascending");
  table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", next);
  const keyed = rows.map((row, i) => [value(row, column), i, row]);
  keyed.sort((a, b) => compare(a[0], b[0], next === "ascending" ? 1 : -1) || a[1] - b[1]);
  body.append(...keyed.map((entry) => entry[2]));
}));

function apply() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = [...row.cells].slice(0, -1).map((cell) => cell.textContent).join(" ").toLowerCase();  // but for the keys
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length}`;
}
filter.addEventListener("input", apply);
apply();

// Where the table is wider than its box, the columns that say what a row is stay in sight, as many as leave room for half of the box.
const scroll = table.parentElement, places = ["rank", "recipe", "axis", "step", "round"];
function hold() {
  scroll.classList.toggle("wide", scroll.scrollWidth > scroll.clientWidth);
  table.querySelectorAll(".held").forEach((cell) => { cell.classList.remove("held", "edge"); cell.style.left = ""; });
  if (!scroll.classList.contains("wide")) return;
  const heads = [...table.tHead.rows[0].cells], first = heads.findIndex((head) => !places.some((kind) => head.classList.contains(kind)));
  const start = table.getBoundingClientRect().left, lefts = heads.map((head) => head.getBoundingClientRect().left - start), room = scroll.clientWidth / 2;
  let held = first < 0 ? 0 : first;
  while (held && lefts[held] > room) held -= 1;
  for (const row of table.rows) {
    for (let i = 0; i < held; i += 1) {
      row.cells[i].classList.add("held");
      row.cells[i].classList.toggle("edge", i === held - 1);
      row.cells[i].style.left = `${lefts[i]}px`;
    }
  }
}
window.addEventListener("resize", hold);
hold();

// Pointing at an entry of the figure's key fades all other lines.
document.querySelectorAll(".keys [data-label]").forEach((item) => {
  const others = () => item.closest("section").querySelectorAll(`.panels [class^="label"]:not(.label${item.dataset.label})`);
  item.addEventListener("pointerenter", () => others().forEach((line) => line.classList.add("dim")));
  item.addEventListener("pointerleave", () => others().forEach((line) => line.classList.remove("dim")));
});
