// Progressive enhancement: keyboard shortcuts, theme, forms that submit themselves, live runs. Every page works without it.
"use strict";

const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// Selects submit their form on change, so their buttons are only for browsers without scripts.
for (const button of all("[data-plain]")) button.hidden = true;
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
  // Leave empty fields out of the URL.
  if (event.target.method === "get")
    for (const field of all("input, select", event.target)) if (!field.value) field.disabled = true;
});
addEventListener("pageshow", () => all(":disabled").forEach((field) => (field.disabled = false)));

// A rule is asked for what its kind needs, and for nothing else.
const kinds = document.querySelector("[data-kinds]");
if (kinds) {
  const ask = () => {
    for (const label of all("[data-asked]", kinds.form)) label.hidden = !label.dataset.asked.split(" ").includes(kinds.value);
  };
  kinds.addEventListener("change", ask);
  ask();
}

// Theme
const themeSwitch = document.querySelector("[data-theme-switch]");
const showTheme = () => (themeSwitch.querySelector("span").textContent = Theme.chosen);
if (themeSwitch) {
  themeSwitch.hidden = false;
  showTheme();
  themeSwitch.addEventListener("click", () => (Theme.next(), showTheme()));
}

// Keyboard
const help = document.getElementById("help");
const helpButton = document.querySelector("[data-help]");
if (helpButton) {
  helpButton.hidden = false;
  helpButton.addEventListener("click", () => help.showModal());
}
const rows = () => all("table[data-rows] tbody tr:not(.more)");
function step(by) {
  const list = rows();
  const current = list.findIndex((row) => row.getAttribute("aria-selected") === "true");
  const next = list[Math.min(Math.max(current + by, 0), list.length - 1)];
  if (!next) return;
  list[current]?.removeAttribute("aria-selected");
  next.setAttribute("aria-selected", "true");
  next.querySelector("a, button")?.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}
const keys = {
  "/": () => document.querySelector("[data-search]")?.focus(),
  "?": () => help.showModal(),
  j: () => step(1),
  k: () => step(-1),
  t: () => themeSwitch?.click(),
  w: () => document.querySelector("[data-watch]")?.click(),
};
let goPressedAt = 0;
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select") || help.open;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") return void (goPressedAt = Date.now());
  if (Date.now() - goPressedAt < 1000) {
    goPressedAt = 0;
    const link = document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`);
    if (link) return link.click();
  }
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

// The row with the focus is the selected one, however the focus got there.
document.addEventListener("focusin", (event) => {
  const row = event.target.closest("table[data-rows] tbody tr");
  if (!row || row.getAttribute("aria-selected") === "true") return;
  for (const selected of all("table[data-rows] tr[aria-selected]")) selected.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
});

// Show errors of htmx requests.
function showProblem(text) {
  const message = document.createElement("p");
  message.className = "problem";
  message.setAttribute("role", "alert");
  message.textContent = text;
  document.getElementById("main").prepend(message);
}
document.addEventListener("htmx:responseError", ({ detail }) => {
  const page = new DOMParser().parseFromString(detail.xhr.responseText, "text/html");
  showProblem(page.querySelector(".problem")?.textContent || `The server returned ${detail.xhr.status}. Reload the page.`);
});
document.addEventListener("htmx:sendError", () => showProblem("The server is not responding. Try again in a moment."));

// Scroll lineages to the newest checkpoint.
for (const lineage of all(".lineage")) lineage.scrollLeft = lineage.scrollWidth;

// Logs start at their end and follow new lines, unless the reader has scrolled up.
const log = document.querySelector("[data-log]");
const panel = log?.parentElement;
const toEnd = () => (panel.scrollTop = panel.scrollHeight);
if (log) toEnd();
const lastLine = () => all("[data-number]", log).at(-1);
let seen = log ? Math.max(log.dataset.seen, lastLine()?.dataset.number ?? 0) : 0;
let wanted = 0, reading = false;
async function readLogTo(number) {
  wanted = number;
  if (reading) return;
  reading = true;
  while (wanted > seen) {
    const before = lastLine();
    const response = await fetch(`${log.dataset.log}&after=${seen}&attempt=${before?.dataset.attempt ?? 0}`).catch(() => null);
    if (!response?.ok) break; // the next progress event tries again
    const atEnd = panel.scrollHeight - panel.scrollTop - panel.clientHeight < 40;
    const target = wanted;
    log.insertAdjacentHTML("beforeend", (await response.text()).trim());
    const last = lastLine();
    seen = last === before ? target : Number(last.dataset.number);
    if (atEnd) toEnd();
  }
  reading = false;
}

// Follow a live run.
const live = document.querySelector("[data-events]");
if (live) {
  const stream = new EventSource(live.dataset.events);
  // A resumed stage does not start at 0, so the time left is estimated from the first progress seen here.
  let start = null;
  const left = ({ stage, state, progress }) => {
    if (start?.stage !== stage || progress < start.progress) start = { stage, progress, at: performance.now() };
    const [done, seconds] = [progress - start.progress, (performance.now() - start.at) / 1000];
    if (state !== "running" || done < 0.02 || seconds < 3) return "";
    const rest = Math.round(((1 - progress) / done) * seconds);
    return rest < 90 ? `about ${rest} s left` : `about ${Math.round(rest / 60)} min left`;
  };
  const show = (event) => {
    const run = JSON.parse(event.data);
    live.querySelector("[data-stage]").textContent = run.stage || run.state;
    live.querySelector("[data-percent]").textContent = `${Math.round(100 * run.progress)}%`;
    live.querySelector("progress").value = run.progress;
    live.querySelector("[data-left]").textContent = left(run);
    const detail = Object.entries(run.detail).map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? +value.toPrecision(4) : JSON.stringify(value)}`);
    live.querySelector("[data-detail]").textContent = detail.join(" · ");
    readLogTo(run.log_lines);
  };
  stream.addEventListener("progress", show);
  stream.addEventListener("end", (event) => (show(event), stream.close(), location.reload()));
}
