"use strict";
// Draws the charts in the page's colours, sorts tables, and searches and sorts latents. All data is in the page.

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

function browseLatents(form) {
  const list = document.getElementById("latent-list");
  const latents = [...list.children].map((card) => ({ card, text: card.textContent.toLowerCase() }));
  const sort = () => {
    const order = form.elements.order.value;
    const [key, direction] = order.startsWith("-") ? [order.slice(1), 1] : [order, -1];
    list.append(...[...list.children].sort((a, b) => direction * (a.dataset[key] - b.dataset[key])));
  };
  const search = () => {
    const wanted = form.elements.search.value.trim().toLowerCase();
    let shown = 0;
    for (const { card, text } of latents) {
      card.hidden = !(/^\d+$/.test(wanted) ? card.dataset.number === wanted || text.includes(wanted) : text.includes(wanted));
      shown += !card.hidden;
    }
    form.elements.count.value = wanted ? `${shown} found` : "";
  };
  form.elements.order?.addEventListener("change", sort);
  form.elements.search.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
}

drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".key").forEach((key) => key.addEventListener("change", drawCharts));
const controls = document.getElementById("latent-controls");
if (controls) browseLatents(controls);
