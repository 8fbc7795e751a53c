"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  const said = document.getElementById("sorted");
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const rows = [...original];
      if (next) {
        const sign = next === "ascending" ? 1 : -1;
        head.setAttribute("aria-sort", next);
        rows.sort((a, b) => {
          const x = value(a, column), y = value(b, column);
          if (typeof x === "string" || typeof y === "string")
            return sign * String(x).localeCompare(String(y), "en", { numeric: true });
          return sign * (x - y);
        });
      }
      body.append(...rows);
      said.textContent = next ? `Sorted by ${button.textContent}, ${next}` : "In the model's order";
    });
  });
}
window.addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
