"use strict";
// Draws the charts in the page's colours, sorts tables, and searches and sorts latents. All data is in the page.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawCharts() {
  const series = style("--series").split(/\s+/);
  const axis = { gridcolor: style("--line"), linecolor: style("--soft"), zeroline: false, ticks: "outside", tickcolor: style("--soft") };
  for (const block of document.querySelectorAll(".plot-data")) {
    const { data, layout } = JSON.parse(block.textContent);
    data.forEach((trace, i) => {
      const color = series[i % series.length];
      trace.line.color = color;
      if (trace.fill) trace.fillcolor = color + "22";
    });
    Plotly.react(block.dataset.for, data, {
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
      font: { family: "system-ui, sans-serif", size: 13, color: style("--ink") },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      margin: { l: 60, r: 12, t: 8, b: 50 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hovermode: "x unified",
      hoverlabel: { bgcolor: style("--panel"), font: { color: style("--ink") } },
    }, { responsive: true, displayModeBar: false });
  }
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
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
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
  form.elements.order.addEventListener("change", sort);
  form.elements.search.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
}

drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
document.querySelectorAll("table.sortable").forEach(makeSortable);
const controls = document.getElementById("latent-controls");
if (controls) browseLatents(controls);
