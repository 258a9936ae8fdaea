"use strict";
// Shows the pages of a report that is one file, in a frame. The hash is `#<page>`, then the page's own hash.

let frame = document.querySelector("iframe");
const files = new Map([...document.querySelectorAll("script[data-file]")].map((held) => [held.dataset.file, held]));
let current = null; // the page that is shown

const read = (path) => (files.has(path) ? JSON.parse(files.get(path).textContent) : undefined);

// A path from a page's folder, as `../static/report.css`, from the report's.
function resolved(base, path) {
  const parts = base.split("/").slice(0, -1);
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== ".") parts.push(decodeURIComponent(part));
  }
  return parts.join("/");
}

function asked() {
  const [page, ...own] = location.hash.slice(1).split("#");
  const path = page.split("/").map(decodeURIComponent).join("/");
  return { page: files.has(path) ? path : "index.html", own: own.length ? `#${own.join("#")}` : "" };
}

function open() {
  const { page, own } = asked();
  if (page === current) {
    goTo(own);
    return;
  }
  current = page;
  const parsed = new DOMParser().parseFromString(read(page), "text/html");
  for (const link of parsed.querySelectorAll("link[rel=stylesheet]")) {
    const style = parsed.createElement("style");
    style.textContent = read(resolved(page, link.getAttribute("href")));
    link.replaceWith(style);
  }
  for (const image of parsed.querySelectorAll("img[src]")) image.src = read(resolved(page, image.getAttribute("src"))) ?? image.src;
  const scripts = [...parsed.querySelectorAll("script[src]")].map((script) => {
    script.remove();
    return read(resolved(page, script.getAttribute("src")));
  });
  // A new frame has a window of its own: scripts of the last page would be in the way of this one's.
  const fresh = frame.cloneNode();
  frame.replaceWith(fresh);
  frame = fresh;
  const inner = frame.contentDocument;
  inner.open();
  inner.write(`<!DOCTYPE html>${parsed.documentElement.outerHTML}`);
  inner.close();
  start(page, own, scripts);
}

function start(page, own, scripts) {
  const { contentDocument: inner, contentWindow: shown } = frame;
  shown.heldFile = (path) => read(resolved(page, path));
  shown.history.replaceState(null, "", own || "#");
  const replace = shown.history.replaceState.bind(shown.history);
  shown.history.replaceState = (...given) => { replace(...given); history.replaceState(null, "", address(page)); };
  shown.history.pushState = (...given) => { replace(...given); history.pushState(null, "", address(page)); };
  const named = () => { document.title = inner.title; };
  new MutationObserver(named).observe(inner.head, { subtree: true, childList: true });
  named();
  inner.addEventListener("click", (event) => follow(event, page), true);
  for (const text of scripts) {
    const script = inner.createElement("script");
    script.textContent = text;
    inner.body.append(script);
  }
  shown.focus(); // keys are the page's
  history.replaceState(null, "", address(page));
}

// The frame has no history of its own: going back in it would load this whole file into it.
function goTo(own) {
  const shown = frame.contentWindow.location;
  if (shown.hash !== own) shown.replace(own || "#");
}

// Of this file, as it shows a page in its state.
function address(page) {
  return `#${page.split("/").map(encodeURIComponent).join("/")}${frame.contentWindow.location.hash}`;
}

function follow(event, page) {
  const link = event.target.closest("a[href]");
  const href = link?.getAttribute("href");
  if (!href || /^[a-z]+:/.test(href)) return;
  const [path, ...own] = href.split("#");
  const file = path ? resolved(page, path) : page;
  if (!files.has(file)) return;
  if (!file.endsWith(".html")) {
    link.href = read(file); // a download goes on from here
    return;
  }
  event.preventDefault();
  location.hash = `${file.split("/").map(encodeURIComponent).join("/")}${own.length ? `#${own.join("#")}` : ""}`;
}

addEventListener("hashchange", open);
open();
