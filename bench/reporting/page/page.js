"use strict";
(() => {
  const known = JSON.parse(document.getElementById("provenance").textContent);
  const text = (i) => known.texts[i];

  // ---- sorting: a column's head turns through best known order, its reverse, and the order of the suite
  const turns = (numeric) => (numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"]);

  const value = (row, column) => {
    const cell = row.children[column];
    return cell && cell.dataset.v !== undefined ? Number(cell.dataset.v) : null;
  };

  const sort = (table, column, order) => {
    const numeric = column > 0;
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("rule"));
      const sign = order === "descending" ? -1 : 1;
      rows.sort((a, b) => {
        if (order === "none") return a.dataset.at - b.dataset.at;
        if (!numeric) return sign * a.children[0].textContent.localeCompare(b.children[0].textContent);
        const [x, y] = [value(a, column), value(b, column)];
        if (x === null || y === null) return (x === null) - (y === null);  // what has no number stands last
        return sign * (x - y);
      });
      body.append(...rows);
    }
  };

  for (const table of document.querySelectorAll("figure.table table")) {
    for (const body of table.tBodies) [...body.rows].forEach((row, i) => { row.dataset.at = i; });
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const cycle = turns(column > 0);
      const order = cycle[(cycle.indexOf(head.getAttribute("aria-sort")) + 1) % cycle.length];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      sort(table, column, order);
    }));
  }

  // ---- filtering: rows whose name holds every word
  for (const input of document.querySelectorAll("input[data-filter]")) {
    const figure = document.getElementById(input.dataset.filter);
    const told = figure.querySelector("output");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...figure.querySelectorAll("tbody tr:not(.rule)")];
      for (const row of rows) {
        const name = row.children[0].textContent.toLowerCase();
        row.hidden = !words.every((word) => name.includes(word));
      }
      told.textContent = words.length ? `${rows.filter((r) => !r.hidden).length} of ${rows.length} rows` : "";
    });
  }

  // ---- provenance: what is behind a number
  const dialog = document.getElementById("why");
  const element = (name, content) => {
    const made = document.createElement(name);
    if (content !== undefined) made.textContent = content;
    return made;
  };

  const list = (pairs) => {
    const made = element("dl");
    for (const [name, content] of pairs) made.append(element("dt", text(name)), element("dd", text(content)));
    return made;
  };

  const grid = (head, rows) => {
    const region = element("div");
    region.className = "scroll";
    region.tabIndex = 0;
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", "runs");
    const table = element("table");
    const line = table.createTHead().insertRow();
    for (const name of head) {
      const cell = element("th", text(name));
      cell.scope = "col";
      line.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows) {
      const made = body.insertRow();
      for (const content of row) made.insertCell().textContent = text(content);
    }
    region.append(table);
    return region;
  };

  const open = (found) => {
    document.getElementById("why-title").textContent = text(found.title);
    const body = document.getElementById("why-body");
    body.replaceChildren(...found.notes.map((note) => element("p", text(note))));
    if (found.rows.length) body.append(grid(found.head, found.rows), list(found.shared));
    dialog.showModal();
    dialog.scrollTop = 0;
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.number");
    if (button) open(known.numbers[button.dataset.p]);
    else if (event.target === dialog) dialog.close();
  });
})();
