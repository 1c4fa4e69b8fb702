"use strict";
for (const {id, spec} of JSON.parse(document.getElementById("specs").textContent)) {
  const place = document.getElementById(id);
  vegaEmbed(place, spec, {renderer: "svg", actions: false, ast: true}).then(
    () => {
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", spec.description);
      place.removeAttribute("aria-roledescription");
      // Read out one by one, axes and marks tell a listener nothing: the table of epochs does.
      for (const part of place.children) part.setAttribute("aria-hidden", "true");
    },
    (error) => {
      place.textContent = "This chart cannot be drawn: " + error;
    },
  );
}

const theme = document.querySelector("button.theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).getPropertyValue("--ground").trim() !== "#ffffff";
  root.dataset.theme = isDark ? "light" : "dark";
});

function readCell(row, place) {
  const cell = row.cells[place];
  const value = Number(cell.dataset.value ?? NaN);
  return Number.isNaN(value) ? cell.textContent.trim() : value;
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.rows[0].querySelectorAll("th").forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isUp = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isUp ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].sort((one, two) => {
        const [a, b] = [readCell(one, place), readCell(two, place)];
        if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true});
        return typeof a === "number" ? -1 : 1;
      });
      table.tBodies[0].append(...(isUp ? rows.reverse() : rows));
    });
  });
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
