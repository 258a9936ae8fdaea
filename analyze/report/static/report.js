"use strict";
// Draws the charts in the page's colours, sorts tables, shows definitions and gives tables as CSV. All data is in the page.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawCharts() {
  const series = style("--series").split(/\s+/);
  const color = (place) => series[place % series.length];
  const axis = { gridcolor: style("--line"), linecolor: style("--soft"), zeroline: false, ticks: "outside", tickcolor: style("--soft") };
  const depth = { gridcolor: style("--line"), linecolor: style("--soft"), zerolinecolor: style("--soft"), showbackground: false };
  for (const swatch of document.querySelectorAll(".key svg")) swatch.style.color = color(swatch.dataset.series);
  for (const block of document.querySelectorAll(".plot-data")) {
    const { data, layout } = JSON.parse(block.textContent);
    const hidden = new Set([...block.closest("section").querySelectorAll(".key input:not(:checked)")].map((box) => box.value));
    data.forEach((trace, i) => {
      const own = trace.meta?.ink ? style("--ink") : color(trace.meta?.series ?? i);
      if (trace.line) trace.line.color = own;
      if (trace.marker) trace.marker.color = own;
      if (trace.fill) trace.fillcolor = own + "22";
      trace.visible = !hidden.has(trace.name);
    });
    layout.shapes?.forEach((shape) => { shape.line.color = style("--soft"); });
    for (const name of ["xaxis", "yaxis"]) if (layout[name]) layout[name] = { ...axis, ...layout[name] };
    if (layout.scene) for (const name of ["xaxis", "yaxis", "zaxis"]) Object.assign(layout.scene[name], depth);
    Plotly.react(block.dataset.for, data, {
      margin: { l: 60, r: 12, t: 8, b: 50 },
      hovermode: "x unified",
      ...layout,
      font: { family: "system-ui, sans-serif", size: 13, color: style("--ink") },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hoverlabel: { bgcolor: style("--panel"), font: { color: style("--ink") } },
    }, { responsive: true, displayModeBar: false });
  }
  // Plotly measures text in a drawing out of sight, which is nothing to be told about.
  document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true");
}

function sortTable(table, column, direction) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return direction * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

function makeSortable(table) {
  // Where heads are grouped, those of single columns are in the last row.
  const heads = [...[...table.tHead.rows].at(-1).cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    // Figures are looked through from the largest, names from A.
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    sortTable(table, column, order === "ascending" ? 1 : -1);
  }));
}

// A definition shows beside what it defines, for the mouse and for the keyboard.
function showDefinitions() {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const show = (of) => {
    tip.textContent = of.dataset.tip;
    tip.hidden = false;
    const place = of.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8))}px`;
    const below = place.bottom + 6;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : place.top - tip.offsetHeight - 6}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const button of document.querySelectorAll("thead button[title]")) {
    button.dataset.tip = button.title;
    button.removeAttribute("title");
    button.setAttribute("aria-describedby", "tip");
    button.addEventListener("mouseenter", () => show(button));
    button.addEventListener("focus", () => show(button));
    button.addEventListener("mouseleave", hide);
    button.addEventListener("blur", hide);
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, true);
}

function csvOf(table) {
  const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const cells = (row) => [...row.cells].flatMap((cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim().replace(/\s+/g, " ");
    return [quoted(text), ...Array(cell.colSpan - 1).fill("")];
  });
  return [...table.rows].map((row) => cells(row).join(",")).join("\n") + "\n";
}

// Every table can be had as CSV, with all the digits that the measurement has.
function offerCsv(table, place) {
  const link = document.createElement("a");
  link.className = "csv";
  link.textContent = "CSV";
  link.href = "#";
  const title = table.caption?.textContent ?? table.closest("[aria-labelledby]")?.getAttribute("aria-labelledby") ?? "";
  const name = `${document.title.split(" · ")[0]} ${title}`.trim().slice(0, 60).replace(/[^\p{L}\p{N}]+/gu, "-");
  link.setAttribute("aria-label", `Download table ${place + 1} of this page as CSV`);
  link.addEventListener("click", () => {
    link.download = `${name}.csv`;
    link.href = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
  });
  table.closest(".scroll").after(link);
}

drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".key").forEach((key) => key.addEventListener("change", drawCharts));
document.querySelectorAll(".scroll > table").forEach(offerCsv);
showDefinitions();
