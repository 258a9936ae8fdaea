"use strict";
// The list of latents: search, sort, filter. Only the rows in view are elements, whatever the number of latents.

const ROW = 52; // pixels, as in browser.css
const DENSE = 0.1;

const filters = {
  all: { label: "all", keeps: () => true },
  live: { label: "live", keeps: (dictionary, latent) => dictionary.value("rate", latent) > 0 },
  dead: { label: "dead", keeps: (dictionary, latent) => dictionary.value("rate", latent) === 0 },
  dense: { label: "dense (in over 10 % of rows)", keeps: (dictionary, latent) => dictionary.value("rate", latent) > DENSE },
  anchored: { label: "anchored", keeps: (dictionary, latent) => latent < dictionary.anchors.length },
};

// Latents in the order asked for. Those that the search names exactly come first, those without a figure last.
async function ordered(dictionary, { search, sort, up, show }) {
  const every = Array.from({ length: dictionary.latents }, (_, latent) => latent);
  const kept = every.filter((latent) => filters[show].keeps(dictionary, latent));
  const values = dictionary.figure[sort]?.values ?? every;
  const rank = await ranks(dictionary, search.toLowerCase());
  const direction = up ? 1 : -1;
  return kept.filter((latent) => rank(latent) < 2).sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    const missing = (x === null) - (y === null);
    return rank(a) - rank(b) || missing || direction * (x - y) || a - b;
  });
}

// Of each latent 0 where its number, label or a peak token is what is looked for, 1 where one contains it, else 2.
async function ranks(dictionary, wanted) {
  if (!wanted.trim()) return () => 0;
  const rankOf = (text) => {
    const lower = text.toLowerCase();
    return lower.trim() === wanted.trim() ? 0 : lower.includes(wanted) ? 1 : 2;
  };
  const { texts, of } = await dictionary.peakTokens();
  const tokens = texts.map(rankOf);
  const labels = Object.entries(dictionary.bestLabels).map(([set, best]) => {
    const ranked = dictionary.sets[set].map(rankOf);
    return (latent) => (dictionary.value(`${set}/f1`, latent) === null ? 2 : ranked[best[latent]] ?? 2);
  });
  const anchors = dictionary.anchors.map(rankOf);
  const found = of.map((ofLatent, latent) => Math.min(
    String(latent) === wanted.trim() ? 0 : 2,
    anchors[latent] ?? 2,
    ...labels.map((rank) => rank(latent)),
    ...ofLatent.map((text) => tokens[text]),
  ));
  return (latent) => found[latent];
}

class LatentList {
  constructor(box, rows, choose) {
    Object.assign(this, { box, rows, choose, latents: [], latent: null });
    box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(box);
    rows.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) this.choose(Number(row.dataset.latent));
    });
  }

  show(dictionary, latents, sort) {
    Object.assign(this, { dictionary, latents, sort });
    this.rows.style.height = `${ROW * latents.length}px`;
    this.draw();
  }

  // Marks a latent and brings its row into view.
  mark(latent) {
    this.latent = latent;
    const place = this.latents.indexOf(latent);
    const [top, height] = [place * ROW, this.box.clientHeight];
    if (place >= 0 && (top < this.box.scrollTop || top + ROW > this.box.scrollTop + height)) {
      this.box.scrollTop = Math.max(0, top - height / 2);
    }
    this.draw();
  }

  // The latent that many places further on; the ends stay.
  beside(step) {
    const place = this.latents.indexOf(this.latent);
    if (place < 0) return this.latents[0];
    return this.latents[Math.min(this.latents.length - 1, Math.max(0, place + step))];
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 4);
    const count = Math.ceil(this.box.clientHeight / ROW) + 8;
    const drawn = this.latents.slice(first, first + count).map((latent, place) => this.row(latent, first + place));
    this.rows.replaceChildren(...drawn);
    const shownRow = drawn.some((row) => Number(row.dataset.latent) === this.latent);
    if (shownRow) this.box.setAttribute("aria-activedescendant", `row-${this.latent}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  row(latent, place) {
    const { dictionary, sort } = this;
    const figure = dictionary.figure[sort] ?? dictionary.figure.rate;
    const image = dictionary.topImages?.[latent] ?? null;
    const row = el(
      "div", {
        id: `row-${latent}`, role: "option", "data-latent": latent, class: image === null ? null : "with-picture",
        "aria-selected": latent === this.latent, "aria-posinset": place + 1, "aria-setsize": this.latents.length,
      },
      image === null ? null : el("img", { alt: "", src: dictionary.image(image) }),
      el("span", { class: "row-number" }, String(latent)),
      el("bdi", { class: "row-title" }, dictionary.title(latent)),
      el("span", { class: "row-value", title: figure.label }, shown(figure.values[latent], figure.form)),
      el("span", { class: "row-peaks" }, ...tokenChips(dictionary.peakTexts(latent))),
    );
    row.style.top = `${ROW * place}px`;
    return row;
  }
}
