"use strict";
// The page: its state is in the hash, `#123&with=other&search=the&sort=max`, so that a link brings it back.

const page = document.body.dataset;
const finder = document.getElementById("finder").elements;
const tools = document.getElementById("tools").elements;
const byId = (id) => document.getElementById(id);
let own; // the page's Dictionary
let list;
let state;
let drawing = 0; // of latents that were asked for quickly one after the other, the last is drawn

function defaults() {
  const best = own.figures.find((figure) => figure.key.endsWith("/f1")) ?? own.figure.token_purity ?? own.figure.rate;
  return { latent: null, with: "", other: null, search: "", sort: best.key, up: false, show: "all" };
}

function readHash() {
  const [number, ...rest] = location.hash.slice(1).split("&");
  const given = new URLSearchParams(rest.join("&"));
  const read = { ...defaults(), latent: /^\d+$/.test(number) ? Number(number) : null };
  for (const name of ["with", "search"]) if (given.has(name)) read[name] = given.get(name);
  if (given.get("sort") === "index" || own.figure[given.get("sort")]) read.sort = given.get("sort");
  if (Object.hasOwn(filters, given.get("show"))) read.show = given.get("show");
  if (given.has("up")) read.up = given.get("up") === "true";
  else if (read.sort === "index") read.up = true;
  if (/^\d+$/.test(given.get("other") ?? "")) read.other = Number(given.get("other"));
  if (read.latent !== null && read.latent >= own.latents) read.latent = null;
  if (!own.others.includes(read.with)) read.with = "";
  return read;
}

function hashOf(wanted) {
  const usual = { ...defaults(), up: wanted.sort === "index" };
  const given = new URLSearchParams();
  for (const name of ["with", "other", "search", "sort", "up", "show"]) {
    if (wanted[name] !== usual[name]) given.set(name, String(wanted[name]));
  }
  return `#${wanted.latent ?? ""}${given.size ? `&${given}` : ""}`;
}

// A latent that was gone to can be gone back from; a search or an order is no step of its own.
function change(changes) {
  const next = { ...state, ...changes };
  const url = hashOf(next);
  if (url === location.hash) return;
  if (next.latent !== state.latent && state.latent !== null) history.pushState(null, "", url);
  else history.replaceState(null, "", url);
  return show();
}

async function show() {
  const before = state;
  state = readHash();
  const listed = ["search", "sort", "up", "show"];
  if (!before || listed.some((name) => before[name] !== state[name])) await showList();
  if (state.latent === null) {
    state.latent = list.latents[0] ?? 0;
    history.replaceState(null, "", hashOf(state));
  }
  list.mark(state.latent);
  tools.previous.disabled = list.beside(-1) === state.latent;
  tools.next.disabled = list.beside(1) === state.latent;
  const shownOnes = ["latent", "with", "other"];
  if (!before || shownOnes.some((name) => before[name] !== state[name])) await showLatents();
}

async function showList() {
  const asked = state;
  if (finder.search.value !== asked.search) finder.search.value = asked.search;
  finder.sort.value = asked.sort;
  finder.show.value = asked.show;
  finder.up.setAttribute("aria-pressed", String(asked.up));
  finder.up.textContent = asked.up ? "lowest first" : "highest first";
  const latents = await ordered(own, asked);
  if (asked !== state) return; // there is a newer search
  list.show(own, latents, asked.sort);
  finder.count.value = `${grouped.format(latents.length)} of ${grouped.format(own.latents)}`;
}

async function showLatents() {
  const turn = ++drawing;
  const { latent } = state;
  document.title = `Latent ${latent} · ${page.name} · ${page.experiment}`;
  tools.with.value = state.with;
  let articles;
  try {
    articles = [await latentArticle(own, latent, (number) => hashOf({ ...state, latent: number, other: null }))];
    if (state.with) articles = [el("div", {}, named(own.name), ...articles), await beside()];
  } catch (error) {
    articles = [el("p", { class: "off", role: "alert" }, error.message)];
  }
  if (turn !== drawing) return;
  byId("latents").classList.toggle("two", articles.length > 1);
  byId("latents").replaceChildren(...articles);
  byId("announced").textContent = `Latent ${latent} ${own.title(latent)}`;
}

// The latent of the other dictionary that is shown beside: the best match, unless another one was asked for.
async function beside() {
  const other = await openDictionary(state.with);
  const match = await own.match(state.with);
  const partner = match?.partner[state.latent] ?? -1;
  const chosen = state.other ?? (partner >= 0 ? partner : null);
  const number = el("input", { type: "number", min: 0, max: other.latents - 1, value: chosen ?? "", "aria-label": `Latent of ${other.name}` });
  number.addEventListener("change", () => change({ other: number.value === "" || Number(number.value) >= other.latents ? null : Number(number.value) }));
  const why = chosen === null ? (match ? "No latent of it is matched to this one. Any can be chosen: " : "The two were not matched. Choose a latent: ")
    : chosen === partner ? `Best match, decoder cosine ${shown(match.cosine[state.latent])}: ` : "Chosen, not the best match: ";
  const wrap = el("div", {}, named(other.name, why, number));
  if (chosen !== null && chosen < other.latents) {
    wrap.append(await latentArticle(other, chosen, (latent) => `${encodeURIComponent(other.name)}.html#${latent}`));
  }
  return wrap;
}

const named = (name, ...more) => el("p", { class: "beside" }, el("strong", {}, el("bdi", {}, name)), ...more);

function fillChoices() {
  const kind = own.kind === "sae" ? "SAE" : own.kind;
  const where = own.reads.join() === own.writes.join() ? `of ${own.reads.join(", ")}` : `from ${own.reads.join(", ")} to ${own.writes.join(", ")}`;
  byId("about").textContent = `${kind} ${where}, ${grouped.format(own.latents)} latents, ${grouped.format(own.rows)} rows`;
  for (const [key, { label, keeps }] of Object.entries(filters)) {
    let count = 0;
    for (let latent = 0; latent < own.latents; latent += 1) count += keeps(own, latent);
    finder.show.append(el("option", { value: key }, `${label}: ${grouped.format(count)}`));
  }
  finder.sort.append(el("option", { value: "index" }, "number"));
  for (const set of [null, ...Object.keys(own.bestLabels)]) {
    const options = own.figures.filter((figure) => figure.set === set).map((figure) => el("option", { value: figure.key }, figure.label));
    finder.sort.append(...(set === null ? options : [el("optgroup", { label: set }, ...options)]));
  }
  tools.with.append(...own.others.map((name) => el("option", { value: name }, name)));
  tools.with.closest("label").hidden = own.others.length === 0;
  document.querySelector("[data-only=images]").hidden = !own.images?.grid;
  showDefinitions(own, byId("definitions").querySelector("dl"));
}

function step(by) {
  const latent = list.beside(by);
  if (latent !== undefined) change({ latent, other: null });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (typing) {
    if (event.key === "Escape" && event.target === finder.search) byId("list").focus();
    if (event.key === "ArrowDown" && event.target === finder.search) byId("list").focus();
    if (event.key === "Enter" && event.target === finder.search && list.latents.length) change({ latent: list.latents[0], other: null });
    return;
  }
  const inList = event.target === byId("list");
  const keys = {
    j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    "/": () => { finder.search.focus(); finder.search.select(); }, "?": () => byId("help").showModal(),
    ...(inList ? {
      ArrowDown: () => step(1), ArrowUp: () => step(-1), Home: () => step(-own.latents), End: () => step(own.latents),
      Enter: () => byId("shown").focus(),
    } : {}),
  };
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
}

function listen() {
  finder.search.addEventListener("input", () => change({ search: finder.search.value }));
  finder.sort.addEventListener("change", () => change({ sort: finder.sort.value, up: finder.sort.value === "index" }));
  finder.show.addEventListener("change", () => change({ show: finder.show.value }));
  finder.up.addEventListener("click", () => change({ up: !state.up }));
  byId("finder").addEventListener("submit", (event) => event.preventDefault());
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  tools.previous.addEventListener("click", () => step(-1));
  tools.next.addEventListener("click", () => step(1));
  tools.with.addEventListener("change", () => change({ with: tools.with.value, other: null }));
  tools.heat.addEventListener("change", () => byId("latents").classList.toggle("cold", !tools.heat.checked));
  tools.help.addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", onKey);
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); byId("shown").focus(); });
  addEventListener("hashchange", show);
  addEventListener("popstate", show);
}

async function start() {
  try {
    own = await openDictionary(page.name);
  } catch (error) {
    byId("latents").replaceChildren(el("p", { class: "off", role: "alert" }, error.message));
    return;
  }
  list = new LatentList(byId("list"), byId("rows"), (latent) => change({ latent, other: null }));
  fillChoices();
  listen();
  await show();
}

start();
