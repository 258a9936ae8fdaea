"use strict";
// Examples of a latent: tokens shaded by activation, or pictures with the activation of every patch over them.

const LEVELS = 8;
const HEAT_LEVELS = 31;

function examplesList(examples, about, dictionary) {
  const pictures = examples.some((example) => "image" in example);
  const labelled = examples.some((example) => example.labels.length);
  return el("ol", { class: pictures ? "picture-grid" : `example-list${labelled ? "" : " unlabelled"}` }, ...examples.map((example) => (
    pictures ? pictureItem(example, about, dictionary) : contextItem(example, about)
  )));
}

function contextItem(example, about) {
  return el(
    "li", { title: `row ${grouped.format(example.row)}` },
    el("span", { class: "value" }, shown(example.activation)),
    "tokens" in example ? context(example, about) : el("span", { class: "tokens" }, `row ${grouped.format(example.row)}`),
    labelsOf(example),
  );
}

// Every context is a bidi island: a text from right to left turns nothing around it.
function context(example, about) {
  const line = el("bdi", { class: "tokens" });
  example.tokens.forEach((token, place) => {
    const [text, activation] = [about.texts[token], example.activations[place]];
    const level = activation > 0 ? Math.min(LEVELS, Math.ceil(LEVELS * activation / about.max)) : 0;
    const own = place === example.peak;
    if (level || own) line.append(el("mark", { class: `a${level}${own ? " peak" : ""}`, title: String(activation) }, text));
    else line.append(text);
  });
  return line;
}

function labelsOf(example) {
  const parts = example.labels.flatMap(([set, label], i) => [...(i ? [", "] : []), el("bdi", { title: set }, label)]);
  return el("span", { class: "labels" }, ...parts);
}

function pictureItem(example, about, dictionary) {
  const { grid, pixels } = dictionary.images;
  const name = about.images?.[example.image];
  const where = `image ${example.image}${example.patch ? `, patch ${example.patch.join(", ")}` : ""}`;
  const frame = el("span", {
    class: "picture-frame", role: "img", "aria-label": `${where}, activation ${shown(example.activation)}`,
    title: name ? `${name} (${where})` : where,
  });
  frame.style.aspectRatio = `${pixels[1]} / ${pixels[0]}`;
  const image = el("img", { alt: "", loading: "lazy", src: dictionary.image(example.image) });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "no-picture" }, where)));
  frame.append(image);
  if (example.heat) frame.append(heatOf(example.heat, grid));
  if (example.patch) frame.append(patchFrame(example.patch, grid));
  return el("li", {}, frame, el("span", { class: "value" }, shown(example.activation)), labelsOf(example));
}

function heatOf(heat, [down, across]) {
  const canvas = el("canvas", { width: across, height: down, class: "heat", "aria-hidden": "true" });
  const pixels = new ImageData(across, down);
  [...heat].forEach((shade, place) => {
    const part = parseInt(shade, 32) / HEAT_LEVELS;
    pixels.data.set([255, 140, 0, part ? 255 * (0.15 + 0.6 * part) : 0], 4 * place);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function patchFrame([y, x], [down, across]) {
  const frame = el("i", { "aria-hidden": "true" });
  Object.assign(frame.style, {
    top: `${100 * y / down}%`, left: `${100 * x / across}%`, height: `${100 / down}%`, width: `${100 / across}%`,
  });
  return frame;
}

// Ten groups of active rows, lowest activations first, each with the range it spans.
function quantileGroups(groups, about, dictionary) {
  return groups.map((group, place) => [group, place]).filter(([group]) => group.length).map(([group, place]) => {
    const activations = group.map((example) => example.activation);
    const [low, high] = [Math.min(...activations), Math.max(...activations)];
    return el(
      "section", { class: "quantile" },
      el("h4", {}, `${place + 1} of ${groups.length}`, el("span", { class: "range" }, ` ${shown(low)} – ${shown(high)}`)),
      examplesList(group, about, dictionary),
    );
  });
}
