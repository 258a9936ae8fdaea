"use strict";
// What the browser shows, from scripts beside the page: from file:// nothing else can be loaded. Each calls one of the
// four functions here that start with "latent". All texts become text nodes, never markup.

const dictionaries = new Map(); // name -> Dictionary
const scripts = new Map(); // path -> promise of its having run

class Dictionary {
  constructor(index) {
    Object.assign(this, index);
    this.figure = Object.fromEntries(index.figures.map((figure) => [figure.key, figure]));
    this.packed = new Map(); // number of a pack -> its text, then a promise of what it holds
    this.matches = new Map(); // another dictionary -> {partner, cosine}
  }

  value(key, latent) {
    return this.figure[key]?.values[latent] ?? null;
  }

  // The best label over all sets: {set, text, f1}; null where no row in which it is active has one.
  best(latent) {
    const found = Object.entries(this.bestLabels).map(([set, labels]) => (
      { set, text: this.sets[set][labels[latent]], f1: this.value(`${set}/f1`, latent) }
    )).filter(({ text, f1 }) => text !== undefined && f1 !== null);
    return found.sort((a, b) => b.f1 - a.f1)[0] ?? null;
  }

  // What a latent is called where there is no room for more.
  title(latent) {
    return this.anchors[latent] ?? this.best(latent)?.text ?? "";
  }

  peakTexts(latent) {
    return this.peaks.of[latent].map((text) => this.peaks.texts[text]);
  }

  async latent(latent) {
    const number = Math.floor(latent / this.packSize);
    await runScript(`${folder(this.name)}/packs/${number}.js`);
    if (typeof this.packed.get(number) === "string") this.packed.set(number, unpacked(this.packed.get(number)));
    const { texts, images, latents } = await this.packed.get(number);
    const { groups, examples, ...rest } = latents[latent];
    const all = examples.row.map((_, place) => this.example(examples, place));
    let at = 0;
    const [top, ...quantiles] = groups.map((count) => all.slice(at, at += count));
    return { texts, images, top, quantiles, ...rest };
  }

  // Packs hold examples column by column, tokens as a character each.
  example(columns, place) {
    const example = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[place]]));
    example.labels = Object.entries(this.sets).map(([set, names], i) => [set, names[example.labels[i]]]).filter(([, name]) => name !== undefined);
    if ("tokens" in example) {
      example.tokens = Array.from(example.tokens, placeOf);
      example.activations = example.tokens.map(() => 0);
      for (let i = 0; i < example.around.length; i += 2) example.activations[example.around[i]] = example.around[i + 1];
      example.activations[example.peak] = example.activation;
    }
    return example;
  }

  async match(other) {
    if (!this.matched.includes(other)) return null;
    await runScript(`${folder(this.name)}/with/${encodeURIComponent(other)}.js`);
    return this.matches.get(other);
  }

  async peakTokens() {
    await runScript(`${folder(this.name)}/search.js`);
    return this.allPeaks;
  }

  image(number) {
    return heldOr(`${folder(this.name)}/images/${number}.jpg`);
  }
}

const latentIndex = (index) => dictionaries.set(index.name, new Dictionary(index));
const latentPack = (name, number, text) => dictionaries.get(name).packed.set(number, text);
const latentTokens = (name, peaks) => { dictionaries.get(name).allPeaks = peaks; };
const latentMatch = (name, other, partner, cosine) => dictionaries.get(name).matches.set(other, { partner, cosine });

async function openDictionary(name) {
  await runScript(`${folder(name)}/index.js`);
  return dictionaries.get(name);
}

// The number that a character stands for: they are numbered from "]", without surrogates.
function placeOf(character) {
  const code = character.codePointAt(0);
  return code - 0x5d - (code < 0xe000 ? 0 : 0x800);
}

const folder = (name) => encodeURIComponent(name);

// In a single file the pages that hold this one have the other files.
const heldOr = (path) => window.heldFile?.(path) ?? path;

function runScript(path) {
  if (!scripts.has(path)) {
    scripts.set(path, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const held = window.heldFile?.(path);
      if (held === undefined) {
        script.src = path;
        script.addEventListener("load", resolve);
        script.addEventListener("error", () => reject(new Error(`${path} cannot be read: is the folder whole?`)));
      } else {
        script.textContent = held;
      }
      document.head.append(script);
      if (held !== undefined) resolve();
    }));
  }
  return scripts.get(path);
}

// Gzip, 15 bits a character from U+3400 on; the first says how many bytes of the last 15 are not meant.
async function unpacked(text) {
  const digit = (place) => text.charCodeAt(place) - 0x3400;
  const bytes = new Uint8Array((text.length - 1) * 15 / 8);
  let [bits, count, at] = [0, 0, 0];
  for (let place = 1; place < text.length; place += 1) {
    bits = (bits << 15) | digit(place);
    for (count += 15; count >= 8; count -= 8) bytes[at++] = bits >> (count - 8);
    bits &= (1 << count) - 1;
  }
  const packed = bytes.subarray(0, bytes.length - digit(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// An element with its attributes (those that are null left out) and children; strings become text.
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) if (value !== null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const MISSING = "–";
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const forms = {
  share(value) {
    const percent = 100 * value;
    return `${percent >= 1 || percent === 0 ? percent.toFixed(1) : Number(percent.toPrecision(2))} %`;
  },
  decimal: (value) => value.toFixed(4),
  number: (value) => (Number.isInteger(value) || Math.abs(value) >= 1000 ? grouped.format(value) : value.toPrecision(4)),
};

const shown = (value, form = "number") => (value === null || value === undefined ? MISSING : forms[form](value));
