"use strict";
// One latent: its figures, examples, histogram, labels, logit lens and those it is linked to.

const SVG = "http://www.w3.org/2000/svg";
const SHOWN_AT_ONCE = 10;

async function latentArticle(dictionary, latent, link) {
  const data = await dictionary.latent(latent);
  const about = { ...data, max: dictionary.value("max", latent) };
  const live = data.top.length > 0;
  return el(
    "article", { class: "feature", "aria-label": `Latent ${latent} of ${dictionary.name}` },
    heading(dictionary, latent, link),
    figuresOf(dictionary, latent),
    el(
      "div", { class: "parts" },
      el(
        "div", { class: "part-examples" },
        ...(live ? topExamples(data.top, about, dictionary) : [el("p", { class: "soft" }, noExamples(dictionary, latent))]),
        ...(data.quantiles.length ? [
          el("h3", {}, "By activation"),
          el("p", { class: "soft note" }, "An equal chance sample of the rows in which it is active, in ten groups, the lowest activations first."),
          ...quantileGroups(data.quantiles, about, dictionary),
        ] : []),
      ),
      el(
        "div", { class: "part-figures" },
        histogram(data.histogram, dictionary.edges),
        lens(data.lens),
        ...Object.entries(data.labels).map(([set, rows]) => labelTable(dictionary, set, rows)),
        ...Object.entries(data.nearest).map(([set, rows]) => nearestLabels(dictionary, set, rows)),
        linkedList("Nearest decoder rows", ["cosine"], data.neighbours, dictionary, link),
        linkedList("Active together", ["Jaccard", "φ"], data.cofiring, dictionary, link),
      ),
    ),
  );
}

const noExamples = (dictionary, latent) => (
  dictionary.value("rate", latent) === 0 ? "Dead: it is active in no row of the store." : "No examples were measured."
);

function heading(dictionary, latent, link) {
  const [anchor, best] = [dictionary.anchors[latent], dictionary.best(latent)];
  const peaks = dictionary.peakTexts(latent);
  return el(
    "header", {},
    el("h2", {}, el("a", { href: link(latent), title: "Link to this latent" }, `Latent ${latent}`), dictionary.title(latent) ? el("bdi", {}, dictionary.title(latent)) : null),
    anchor === undefined ? null : el("p", { class: "soft" }, "held to the anchor ", el("bdi", {}, anchor)),
    best ? el("p", { class: "soft" }, "best label ", el("bdi", {}, best.text), ` of ${best.set}, F1 ${shown(best.f1, "decimal")}`) : null,
    peaks.length ? el("p", { class: "soft" }, "peaks at ", ...tokenChips(peaks)) : null,
  );
}

const tokenChips = (texts) => texts.flatMap((text) => [el("bdi", { class: "chip" }, text), " "]);

function figuresOf(dictionary, latent) {
  const sets = Object.keys(dictionary.bestLabels).filter((set) => dictionary.value(`${set}/f1`, latent) !== null);
  const groups = [null, ...sets];
  return el("div", { class: "figures" }, ...groups.map((set) => {
    const figures = dictionary.figures.filter((figure) => figure.set === set);
    const title = set === null ? null : el("h3", {}, `${set}: `, el("bdi", {}, dictionary.sets[set][dictionary.bestLabels[set][latent]] ?? MISSING));
    return el("section", {}, title, el("dl", {}, ...figures.map((figure) => el(
      "div", {},
      el("dt", { class: "term", tabindex: 0, "data-tip": figure.definition, "aria-describedby": definitionId(figure.key) }, figure.label),
      el("dd", {}, shown(figure.values[latent], figure.form)),
    ))));
  }));
}

const definitionId = (key) => `definition-${key.split("/").at(-1)}`;

// Once on the page, for those who cannot hover.
function showDefinitions(dictionary, list) {
  const known = new Map(dictionary.figures.map((figure) => [definitionId(figure.key), figure]));
  list.replaceChildren(...[...known].flatMap(([id, figure]) => [
    el("dt", {}, figure.label), el("dd", { id }, figure.definition),
  ]));
}

function topExamples(top, about, dictionary) {
  const [first, rest] = [top.slice(0, SHOWN_AT_ONCE), top.slice(SHOWN_AT_ONCE)];
  return [
    el("h3", {}, "Most active"),
    examplesList(first, about, dictionary),
    rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), examplesList(rest, about, dictionary)) : null,
  ].filter(Boolean);
}

// Bins are equally wide on a logarithmic axis; those at the ends that are empty are left out.
function histogram(counts, edges) {
  const first = counts.findIndex(Boolean);
  if (first < 0) return null;
  const last = counts.findLastIndex(Boolean) + 1;
  const [filled, most] = [counts.slice(first, last), Math.max(...counts)];
  const label = `Histogram of activations from ${shown(edges[first])} to ${shown(edges[last])}, at most ${shown(most)} rows in a bin`;
  const svg = svgElement("svg", { viewBox: `0 0 ${filled.length} 100`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  filled.forEach((count, place) => {
    const height = 100 * count / most;
    const bar = svgElement("rect", { x: place + 0.06, width: 0.88, y: 100 - height, height });
    const about = svgElement("title", {});
    about.textContent = `${shown(edges[first + place])} – ${shown(edges[first + place + 1])}: ${shown(count)} rows`;
    bar.append(about);
    svg.append(bar);
  });
  const middle = Math.sqrt(edges[first] * edges[last]);
  return el(
    "figure", { class: "bars" },
    el("h3", {}, "Activations", el("span", { class: "soft" }, ` rows, ${shown(most)} at most`)),
    svg,
    el("figcaption", {}, ...[edges[first], middle, edges[last]].map((edge) => el("span", {}, shown(edge)))),
    el("p", { class: "soft note" }, "activation where active, logarithmic axis"),
  );
}

function svgElement(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function table(title, heads, rows) {
  return el(
    "section", {},
    el("h3", {}, title),
    el(
      "table", {},
      el("thead", {}, el("tr", {}, ...heads.map((head, place) => el("th", { scope: "col", class: place ? "number" : null, title: head[1] ?? null }, head[0])))),
      el("tbody", {}, ...rows),
    ),
  );
}

function labelTable(dictionary, set, rows) {
  if (!rows.length) return null;
  const heads = [
    ["Label"], ["Share", "Share of the latent’s activation that falls on rows with the label"],
    ["Precision", "Of the rows in which the latent is active, the share that carry the label"],
    ["Recall", "Of the rows that carry the label, the share in which the latent is active"],
  ];
  return table(`Labels: ${set}`, heads, rows.map(([label, share, ...figures]) => el(
    "tr", {},
    el("th", { scope: "row", style: `--part: ${share}`, class: "bar" }, el("bdi", {}, dictionary.sets[set][label])),
    ...[share, ...figures].map((value) => el("td", { class: "number" }, shown(value, "share"))),
  )));
}

function nearestLabels(dictionary, set, rows) {
  if (!rows.length) return null;
  return table(`Class means: ${set}`, [["Nearest to the decoder row"], ["Cosine", "With the mean of the label’s rows less that of all rows"]], rows.map(([label, cosine]) => el(
    "tr", {}, el("th", { scope: "row" }, el("bdi", {}, dictionary.sets[set][label])), el("td", { class: "number" }, shown(cosine)),
  )));
}

function lens(found) {
  if (!found) return null;
  const column = (title, tokens = []) => el(
    "table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, title), el("th", { scope: "col", class: "number" }, "Logit"))),
    el("tbody", {}, ...tokens.map(([text, logit]) => el(
      "tr", {}, el("th", { scope: "row" }, el("bdi", { class: "chip" }, text)), el("td", { class: "number" }, shown(logit)),
    ))),
  );
  return el(
    "section", {},
    el("h3", { title: "The decoder row through the model’s last norm and unembedding (logit lens)" }, "Logit lens"),
    el("div", { class: "lens" }, column("Promoted", found.top), column("Suppressed", found.bottom)),
  );
}

function linkedList(title, heads, rows, dictionary, link) {
  if (!rows.length) return null;
  return table(title, [["Latent"], ...heads.map((head) => [head])], rows.map(([latent, ...figures]) => el(
    "tr", {},
    el("th", { scope: "row" }, el("a", { href: link(latent) }, String(latent)), " ", ...nameOf(dictionary, latent)),
    ...figures.map((value) => el("td", { class: "number" }, shown(value))),
  )));
}

function nameOf(dictionary, latent) {
  const title = dictionary.title(latent);
  return [title ? el("bdi", {}, title) : null, " ", ...tokenChips(dictionary.peakTexts(latent))];
}
