// What needs a script: the switch of the theme, and the search. Everything else works without.
"use strict";

const root = document.documentElement;
const base = `${document.body.dataset.root}/`;

// The theme

const button = document.querySelector("button.theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

function label() {
  const other = isDark() ? "light" : "dark";
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Change to the ${other} theme`);
}

button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // Then it holds for this page.
  }
  label();
});
system.addEventListener("change", label);
label();
button.hidden = false;

// Paper is white

let chosen;
addEventListener("beforeprint", () => {
  chosen = root.dataset.theme;
  root.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  if (chosen) root.dataset.theme = chosen;
  else delete root.dataset.theme;
});

// What fits needs no stop of the keyboard

function reachable() {
  for (const box of document.querySelectorAll(".formula, .table, .output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);

// The search; its index is a script, because pages that are opened as files may not fetch

const bar = document.querySelector(".search");
const input = bar.querySelector("input");
const found = bar.querySelector(".found");
const status = bar.querySelector("[role=status]");
let index = null;

const load = (name) =>
  new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${base}static/${name}`;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${name} could not be loaded`));
    document.head.append(script);
  });

async function makeIndex() {
  await Promise.all([load("minisearch.js"), load("search-index.js")]);
  const mini = new MiniSearch({
    fields: ["title", "words", "page"],
    storeFields: ["title", "words", "page"],
    searchOptions: {
      prefix: true,
      fuzzy: 0.15,
      boost: { title: 4, page: 2 },
      combineWith: "AND",
      // Rules and guides before what is behind them.
      boostDocument: (id) => (/^(engines|experiments)\//.test(id) ? 0.5 : 1),
    },
  });
  mini.addAll(window.searchIndex);
  return mini;
}

function marked(text, terms) {
  const escaped = terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const parts = escaped.length ? text.split(new RegExp(`(${escaped.join("|")})`, "i")) : [text];
  return parts.map((part, i) => {
    if (i % 2 === 0) return document.createTextNode(part);
    const mark = document.createElement("mark");
    mark.textContent = part;
    return mark;
  });
}

function excerpt(text, terms) {
  const low = text.toLowerCase();
  const places = terms.map((term) => low.indexOf(term)).filter((place) => place >= 0);
  const from = Math.max(0, Math.min(...places, text.length) - 50);
  const start = places.length ? from : 0;
  return `${start ? "…" : ""}${text.slice(start, start + 150)}${start + 150 < text.length ? "…" : ""}`;
}

async function search() {
  const query = input.value.trim();
  index ??= makeIndex();
  const results = query ? (await index).search(query).slice(0, 12) : [];
  if (query !== input.value.trim()) return;
  found.replaceChildren(
    ...results.map((result) => {
      const link = document.createElement("a");
      link.href = base + result.id;
      const title = document.createElement("b");
      title.append(...marked(result.title === result.page ? result.page : `${result.page} · ${result.title}`, result.terms));
      const words = document.createElement("span");
      words.append(...marked(excerpt(result.words, result.terms), result.terms));
      link.append(title, words);
      return link;
    }),
  );
  if (query && !results.length) found.textContent = "Nothing found.";
  found.hidden = !query;
  status.textContent = query ? `${results.length} ${results.length === 1 ? "result" : "results"}` : "";
}

function close() {
  found.hidden = true;
  status.textContent = "";
}

input.addEventListener("focus", () => (index ??= makeIndex()));
input.addEventListener("input", search);
input.addEventListener("keydown", async (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  await search();
  found.querySelector("a")?.click();
});
bar.addEventListener("click", (event) => event.target.closest(".found a") && close());
document.addEventListener("click", (event) => bar.contains(event.target) || close());
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    input.focus();
  } else if (event.key === "Escape" && bar.contains(event.target)) {
    close();
    input.focus();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && bar.contains(event.target)) {
    const stops = [input, ...found.querySelectorAll("a")];
    const next = stops[stops.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
});
bar.hidden = false;
