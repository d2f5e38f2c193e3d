"use strict";
(() => {
  const EMPTY = new Set(["", "–", "-"]);

  function value(cell) {
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    if (EMPTY.has(text)) return null;
    const number = /^[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?=$|[\s[(%])/i.exec(text);
    return number ? Number(number[0]) : text;
  }

  function compared(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", {numeric: true});
  }

  function sort(table, button) {
    const heading = button.closest("th");
    const next = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", next);
    const place = Number(button.dataset.place);
    const sign = next === "ascending" ? 1 : -1;
    const units = [...table.tBodies].map((body) => [value(body.rows[0].cells[place]), body]);
    units.sort((one, other) => compared(one[0], other[0], sign));
    table.classList.add("sorted");
    for (const [, body] of units) table.append(body);
  }

  function filter(box) {
    const words = box.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
    const bodies = [...box.querySelectorAll("tbody")];
    let shown = 0;
    for (const body of bodies) {
      const text = body.textContent.toLowerCase();
      body.hidden = !words.every((word) => text.includes(word));
      shown += body.hidden ? 0 : 1;
    }
    box.querySelector("output").textContent =
      words.length ? `${shown} of ${bodies.length} rows` : "";
  }

  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    for (const button of table.querySelectorAll("thead button")) {
      button.addEventListener("click", () => sort(table, button));
    }
    if (table.tBodies.length > 2) {
      box.querySelector(".filter").hidden = false;
      box.querySelector("input").addEventListener("input", () => filter(box));
    }
  }

  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = closed();
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
})();
