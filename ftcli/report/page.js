"use strict";
// Filters the rows of the page, which are a plain list without it. Text is never parsed as markup.
(() => {
  const filter = document.getElementById("filter");
  if (!filter) return;
  const rows = Array.from(document.querySelectorAll("#rows > .sample"));
  const boxes = Array.from(filter.querySelectorAll("input[type=checkbox]"));
  const words = document.getElementById("words");
  const status = document.getElementById("shown-rows");
  const texts = new Map();

  const textOf = (row) => {
    if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
    return texts.get(row);
  };

  const show = () => {
    const wanted = words.value.trim().toLowerCase();
    const tags = boxes.filter((box) => box.checked).map((box) => box.value);
    let shown = 0;
    for (const row of rows) {
      const own = row.dataset.tags.split(" ");
      const fits = (!tags.length || tags.some((tag) => own.includes(tag))) &&
        (!wanted || textOf(row).includes(wanted));
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    status.textContent = `${shown} of ${rows.length} rows`;
  };

  const toggle = (open) => {
    for (const row of rows) if (!row.hidden) row.open = open;
  };

  let waiting = 0;
  words.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  for (const box of boxes) box.addEventListener("change", show);
  document.getElementById("open-all").addEventListener("click", () => toggle(true));
  document.getElementById("close-all").addEventListener("click", () => toggle(false));
  filter.hidden = false;
  show();
})();
