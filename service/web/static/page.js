// What a page does beyond reading: keyboard, theme, forms that send themselves, live runs. Everything works without it.
"use strict";

const all = (selector, from = document) => [...from.querySelectorAll(selector)];

// Without scripts a select has a button beside it; with them a choice is enough.
for (const one of all("[data-plain]")) one.hidden = true;
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});
document.addEventListener("submit", (event) => {
  const asked = event.submitter?.dataset.confirm;
  if (asked && !confirm(asked)) event.preventDefault();
  // Empty fields say nothing: the address stays short.
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
const tellTheme = () => (themeSwitch.querySelector("span").textContent = Theme.chosen);
if (themeSwitch) {
  themeSwitch.hidden = false;
  tellTheme();
  themeSwitch.addEventListener("click", () => (Theme.next(), tellTheme()));
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
  const at = list.findIndex((row) => row.getAttribute("aria-selected") === "true");
  const next = list[Math.min(Math.max(at + by, 0), list.length - 1)];
  if (!next) return;
  list[at]?.removeAttribute("aria-selected");
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
let going = 0;
document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input:not([type=checkbox]), textarea, select") || help.open;
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "g") return void (going = Date.now());
  if (Date.now() - going < 1000) {
    going = 0;
    const link = document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`);
    if (link) return link.click();
  }
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

// A selection of the list is of the row that has the focus, however it came there.
document.addEventListener("focusin", (event) => {
  const row = event.target.closest("table[data-rows] tbody tr");
  if (!row || row.getAttribute("aria-selected") === "true") return;
  for (const one of all("table[data-rows] tr[aria-selected]")) one.removeAttribute("aria-selected");
  row.setAttribute("aria-selected", "true");
});

// What htmx could not do is said, not swallowed.
function complain(text) {
  const said = document.createElement("p");
  said.className = "problem";
  said.setAttribute("role", "alert");
  said.textContent = text;
  document.getElementById("main").prepend(said);
}
document.addEventListener("htmx:responseError", ({ detail }) => {
  const page = new DOMParser().parseFromString(detail.xhr.responseText, "text/html");
  complain(page.querySelector(".problem")?.textContent || `The server returned ${detail.xhr.status}. Reload the page.`);
});
document.addEventListener("htmx:sendError", () => complain("The server is not responding. Try again in a moment."));

// A lineage is read from its end.
for (const one of all(".lineage")) one.scrollLeft = one.scrollWidth;

// A log is read from its end, and goes on there unless somebody has gone back in it.
const log = document.querySelector("[data-log]");
const panel = log?.parentElement;
const toEnd = () => (panel.scrollTop = panel.scrollHeight);
if (log) toEnd();
const lastLine = () => all("[data-number]", log).at(-1);
let seen = log ? Math.max(log.dataset.seen, lastLine()?.dataset.number ?? 0) : 0;
let wanted = 0, reading = false;
async function readOn(number) {
  wanted = number;
  if (reading) return;
  reading = true;
  while (wanted > seen) {
    const before = lastLine();
    const answer = await fetch(`${log.dataset.log}&after=${seen}&attempt=${before?.dataset.attempt ?? 0}`).catch(() => null);
    if (!answer?.ok) break; // with the next news there is another chance
    const atEnd = panel.scrollHeight - panel.scrollTop - panel.clientHeight < 40;
    const asked = wanted;
    log.insertAdjacentHTML("beforeend", (await answer.text()).trim());
    const last = lastLine();
    seen = last === before ? asked : Number(last.dataset.number);
    if (atEnd) toEnd();
  }
  reading = false;
}

// A run that goes on tells of itself.
const live = document.querySelector("[data-events]");
if (live) {
  const stream = new EventSource(live.dataset.events);
  // A stage that goes on where a killed one stopped begins later than at 0: time left is reckoned from where it was seen.
  let began = null;
  const left = ({ stage, state, progress }) => {
    if (began?.stage !== stage || progress < began.progress) began = { stage, progress, at: performance.now() };
    const [done, seconds] = [progress - began.progress, (performance.now() - began.at) / 1000];
    if (state !== "running" || done < 0.02 || seconds < 3) return "";
    const more = Math.round(((1 - progress) / done) * seconds);
    return more < 90 ? `about ${more} s left` : `about ${Math.round(more / 60)} min left`;
  };
  const show = (event) => {
    const run = JSON.parse(event.data);
    live.querySelector("[data-stage]").textContent = run.stage || run.state;
    live.querySelector("[data-percent]").textContent = `${Math.round(100 * run.progress)}%`;
    live.querySelector("progress").value = run.progress;
    live.querySelector("[data-left]").textContent = left(run);
    const detail = Object.entries(run.detail).map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? +value.toPrecision(4) : JSON.stringify(value)}`);
    live.querySelector("[data-detail]").textContent = detail.join(" · ");
    readOn(run.log_lines);
  };
  stream.addEventListener("progress", show);
  stream.addEventListener("end", (event) => (show(event), stream.close(), location.reload()));
}
