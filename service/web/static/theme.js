// Runs before the page is painted, so that it never flashes in another theme. The default is the system's theme.
"use strict";

const Theme = {
  names: ["system", "light", "dark"],
  get chosen() {
    try {
      return localStorage.getItem("theme") || "system";
    } catch {
      return "system"; // storage is disabled
    }
  },
  apply() {
    const root = document.documentElement;
    if (Theme.chosen === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", Theme.chosen);
  },
  next() {
    const names = Theme.names;
    try {
      localStorage.setItem("theme", names[(names.indexOf(Theme.chosen) + 1) % names.length]);
    } catch {
      return;
    }
    Theme.apply();
    document.dispatchEvent(new Event("theme"));
  },
};
Theme.apply();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("theme")));
