"use strict";
// Swagger UI, served from here, in the theme of the pages.
const dark = matchMedia("(prefers-color-scheme: dark)");
const paint = () => document.documentElement.classList.toggle("dark-mode", Theme.chosen === "dark" || (Theme.chosen === "system" && dark.matches));
paint();
document.addEventListener("theme", paint);
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
});
