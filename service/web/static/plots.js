// Draws each plot from its table. Colours come from the stylesheet, so they follow the theme.
"use strict";

const STATUSES = JSON.parse(document.currentScript.dataset.statuses); // [{word, sign, colour}]
const BY_WORD = Object.fromEntries(STATUSES.map((status) => [status.word, status]));
// How a plot draws the sign of a status. One that is missing here becomes a circle.
const SYMBOLS = { "▼": "path://M0 0H10L5 9Z", "▲": "path://M0 9H10L5 0Z", "✕": "path://M0 2 2 0 5 3 8 0 10 2 7 5 10 8 8 10 5 7 2 10 0 8 3 5Z", "↷": "rect", "⇄": "diamond", "✦": "path://M5 0 6.5 3.5 10 5 6.5 6.5 5 10 3.5 6.5 0 5 3.5 3.5Z", "?": "emptyCircle" };
const DASHES = [[], [7, 3], [2, 3], [8, 3, 2, 3]];
const LINES = ["blue", "amber", "teal", "magenta", "green", "violet", "red", "grey"];

const library = document.currentScript.dataset.library;
const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;
const colour = (name, alpha = 1) => {
  probe.style.color = `var(--${name})`;
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
  return `rgba(${red},${green},${blue},${alpha})`;
};
const colourOf = (word, otherwise = "text") => colour(BY_WORD[word]?.colour ?? otherwise);
const short = (text, most = 14) => (String(text).length > most ? `${String(text).slice(0, most - 1)}…` : String(text));
const shown = (value) => (value == null ? "–" : typeof value === "number" ? (Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(3))) : value);

// Parse the table of a figure, which the server sends as inert text (see the `figure` macro).
function unfold(figure) {
  const text = figure.querySelector("details > noscript");
  if (text) text.outerHTML = text.textContent;
}

function numbers(figure) {
  unfold(figure);
  const table = figure.querySelector("table.numbers");
  const cells = (row) => [...row.cells].map((cell) => (cell.dataset.v !== undefined ? +cell.dataset.v : cell.textContent === "–" ? null : cell.textContent.trim()));
  const body = [...table.tBodies[0].rows];
  return { columns: cells(table.tHead.rows[0]), rows: body.map(cells), links: body.map((row) => row.dataset.link) };
}

const label = () => ({ color: colour("quiet"), fontSize: 11 });
const axisOf = (names, more = {}) => ({ type: "category", data: names, axisLabel: { ...label(), formatter: (name) => short(name), hideOverlap: true }, axisLine: { lineStyle: { color: colour("line") } }, axisTick: { show: false }, ...more });
const valueAxis = (more = {}) => ({ type: "value", scale: true, axisLabel: label(), splitLine: { lineStyle: { color: colour("line") } }, ...more });
const tooltip = (formatter, more = {}) => ({ renderMode: "richText", confine: true, backgroundColor: colour("panel"), borderColor: colour("strong-line"), textStyle: { color: colour("text"), fontSize: 12 }, formatter, ...more });
const base = (figure) => ({ animation: false, textStyle: { fontFamily: "system-ui, sans-serif" }, aria: { enabled: true, label: { description: `${figure.querySelector("h2").textContent}. The numbers are in the table below.` } } });
// Lines connect parents and children, not neighbours on the axis.
const between = (rows, parents, value, tone, more) => ({
  type: "custom", silent: true, tooltip: { show: false }, ...more,
  data: rows.map((row, child) => [parents[child], rows[parents[child]]?.[value], child, row[value]]).filter((one) => one.every((part) => part != null)),
  encode: { x: [0, 2], y: [1, 3] },
  renderItem(_, api) {
    const [from, to] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(2), api.value(3)])];
    return { type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style: { stroke: tone, lineWidth: 1.5, lineDash: more.dash } };
  },
});
// Error bars. from, to: the columns of the interval ends.
const whiskers = (rows, [from, to], tone, more = {}) => ({
  type: "custom", silent: true, tooltip: { show: false }, ...more, data: rows.map((row, x) => [x, row[from], row[to]]), encode: { x: 0, y: [1, 2] },
  renderItem(_, api) {
    const row = rows[api.value(0)];
    if (row[from] == null || row[to] == null) return null;
    const [[x, low], [, high]] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(0), api.value(2)])];
    const line = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: tone(row), lineWidth: 1.4 } });
    return { type: "group", children: [line(x, low, x, high), line(x - 5, low, x + 5, low), line(x - 5, high, x + 5, high)] };
  },
});
const zoomed = (count, axes) => (count > 40 ? [{ type: "slider", xAxisIndex: axes, height: 14, bottom: 2, startValue: count - 40, endValue: count - 1, textStyle: { color: "transparent" }, borderColor: colour("line"), fillerColor: colour("raised") }] : []);

const draw = {
  counts({ columns, rows }) {
    const statuses = columns.slice(1);
    const at = rows.flatMap((row, x) => statuses.map((_, y) => [x, y, Math.log10(1 + row[y + 1]), row[y + 1]]).filter((one) => one[3]));
    return {
      grid: { left: 90, right: 10, top: 6, bottom: rows.length > 40 ? 44 : 26 },
      dataZoom: zoomed(rows.length, [0]),
      xAxis: axisOf(rows.map((row) => row[0])),
      yAxis: axisOf(statuses, { inverse: true }),
      tooltip: tooltip((one) => `${rows[one.data.value[0]][0]}\n${statuses[one.data.value[1]]}: ${shown(one.data.value[3])}`),
      series: [{
        type: "heatmap", itemStyle: { borderColor: colour("panel"), borderWidth: 1 },
        label: { show: rows.length <= 30, formatter: (one) => shown(one.data.value[3]), color: colour("text"), fontSize: 11 },
        data: at.map((value) => ({ value, itemStyle: { color: colour(BY_WORD[statuses[value[1]]].colour, 0.2 + 0.5 * Math.min(value[2] / 3, 1)) } })),
      }],
      // Each cell has its own colour, but ECharts requires a visual map for heat maps.
      visualMap: { show: false, min: 0, max: 4, dimension: 2, inRange: {}, seriesIndex: [] },
    };
  },
  statuses({ columns, rows }, _, picture) {
    const names = columns.slice(2);
    const data = rows.flatMap((row, y) => names.map((_, x) => ({ value: [x, y, STATUSES.indexOf(BY_WORD[row[x + 2]])] })).filter((one) => one.value[2] >= 0));
    return {
      grid: { left: Math.min(190, innerWidth / 3), right: 10, top: 6, bottom: (names.length > 40 ? 44 : 26) + (picture ? 24 : 0) },
      dataZoom: zoomed(names.length, [0]),
      xAxis: axisOf(names),
      yAxis: axisOf(rows.map((row) => row[0] + (row[1] ? `  ${short(row[1], 22)}` : "")), { inverse: true, axisLabel: { ...label(), color: colour("text"), width: Math.min(180, innerWidth / 3 - 10), overflow: "truncate", interval: 0 } }),
      tooltip: tooltip((one) => `${rows[one.data.value[1]][0]} ${rows[one.data.value[1]][1]}\n${names[one.data.value[0]]}: ${STATUSES[one.data.value[2]].word}`),
      // On the page, the legend is HTML below the drawing, so that it can wrap on a narrow screen.
      visualMap: { type: "piecewise", dimension: 2, show: picture, bottom: 0, left: "center", orient: "horizontal", itemWidth: 12, itemHeight: 12, textStyle: label(), pieces: STATUSES.map(({ word, colour: token }, value) => ({ value, label: word, color: colour(word === "present" ? "raised" : token) })) },
      series: [{ type: "heatmap", data, itemStyle: { borderColor: colour("panel"), borderWidth: 1 } }],
    };
  },
  lines({ columns, rows }, options) {
    const panels = options.panels;
    const share = 100 / panels.length;
    const names = rows.map((row) => row[0]);
    const spread = (one) => {
      const [from, to] = [1, 2].map((more) => rows[one.dataIndex][columns.indexOf(one.seriesName) + more]);
      return options.intervals && from != null ? ` (${shown(from)} to ${shown(to)})` : "";
    };
    const lines = panels.flatMap(([, places], panel) => places.map((place, nth) => ({ panel, place, nth })));
    return {
      grid: panels.map((_, nth) => ({ left: 56, right: 16, top: `${nth * share + (panels.length > 1 ? 5 : 11)}%`, height: `${share - (panels.length > 1 ? 13 : 26)}%` })),
      xAxis: panels.map((_, gridIndex) => axisOf(names, { gridIndex, boundaryGap: rows.length < 8 })),
      yAxis: panels.map(([name], gridIndex) => valueAxis({ gridIndex, splitNumber: 3, name, nameTextStyle: { ...label(), align: "left" }, nameGap: 6 })),
      legend: lines.length > panels.length ? { top: 0, right: 8, textStyle: label(), icon: "roundRect", itemWidth: 12, itemHeight: 4, type: "scroll" } : { show: false },
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: tooltip((found) => [found[0]?.axisValueLabel, ...found.filter((one) => one.seriesType === "line").map((one) => `${one.seriesName}: ${shown(one.data)}${spread(one)}`)].join("\n"), { trigger: "axis" }),
      series: lines.flatMap(({ panel, place, nth }) => {
        const shared = { name: columns[place], xAxisIndex: panel, yAxisIndex: panel, color: colour(LINES[nth % LINES.length]) };
        return [
          between(rows, options.parents, place, shared.color, { ...shared, dash: DASHES[nth % DASHES.length] }),
          { ...shared, type: "line", data: rows.map((row) => row[place]), symbolSize: 5, lineStyle: { width: 0 } },
          ...(options.intervals ? [whiskers(rows, [place + 1, place + 2], () => shared.color, shared)] : []),
        ];
      }),
    };
  },
  trajectory({ columns, rows }, options) {
    const of = Object.fromEntries(columns.map((name, place) => [name, place]));
    const [value, from, to] = options.columns || ["projection ratio", "from", "to"];
    const most = Math.max(1.2, ...rows.map((row) => Math.min(row[of[to]] ?? row[of[value]] ?? 0, 6))) * 1.05;
    const band = options.band || [0.5, 2];
    return {
      grid: { left: 44, right: 16, top: 12, bottom: rows.length > 40 ? 48 : 32 },
      dataZoom: zoomed(rows.length, [0]),
      xAxis: axisOf(rows.map((row) => row[0]), { boundaryGap: true, axisLabel: { ...label(), margin: 14, formatter: (name) => short(name), hideOverlap: true } }),
      yAxis: valueAxis({ scale: false, min: (range) => (range.min < -0.05 ? -0.25 : 0), max: Math.ceil(most * 4) / 4 }),
      tooltip: tooltip((one) => {
        const row = rows[one.dataIndex];
        return [`${row[0]}${of.against && row[of.against] ? ` against ${row[of.against]}` : ""}`, [row[of.status], row[of.places]].filter(Boolean).join(", "), `${value} ${shown(row[of[value]])} (${shown(row[of[from]])} to ${shown(row[of[to]])})`, of.q ? `q ${shown(row[of.q])}` : ""].filter(Boolean).join("\n");
      }),
      series: [
        between(rows, options.parents, of[value], colour("strong-line"), { z: 1 }),
        { type: "line", data: rows.map((row) => row[of[value]]), symbol: "none", lineStyle: { width: 0 }, z: 1, silent: true,
          markArea: { silent: true, itemStyle: { color: colour("green"), opacity: 0.07 }, data: [[{ yAxis: band[0] }, { yAxis: band[1] }]] },
          markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: colour("strong-line"), type: "dashed", width: 1 }, data: [{ yAxis: 1 }] } },
        whiskers(rows, [of[from], of[to]], (row) => colourOf(row[of.status]), { z: 3 }),
        { type: "scatter", z: 2, symbolSize: 8, data: rows.map((row) => ({ value: row[of[value]], symbol: SYMBOLS[BY_WORD[row[of.status]]?.sign] || "circle", itemStyle: { color: colourOf(row[of.status]) } })) },
      ],
    };
  },
  flow({ rows }, options) {
    const status = (name) => options.statuses[name];
    const names = [...new Set(rows.flatMap((row) => [row[0], row[1]]))];
    return {
      tooltip: tooltip((one) => (one.dataType === "edge" ? `${one.data.source} → ${one.data.target}\n${shown(one.data.features)} features` : one.name)),
      series: [{
        type: "sankey", left: 8, right: 190, top: 10, bottom: 10, nodeGap: 12, nodeWidth: 10, draggable: false, emphasis: { focus: "adjacency" },
        label: { color: colour("text"), fontSize: 12, formatter: (one) => { const into = rows.find((row) => row[1] === one.name); return status(one.name) && into ? `${one.name}  ${shown(into[2])}` : short(one.name, 32); } },
        data: names.map((name) => ({ name, label: { position: name === "replaced" && rows.some((row) => row[0] === name) ? "top" : "right" }, itemStyle: { color: colourOf(status(name), "quiet"), borderWidth: 0 } })),
        links: rows.map((row) => ({ source: row[0], target: row[1], value: Math.sqrt(row[2]), features: row[2], lineStyle: { color: colourOf(status(row[1]) || status(row[0]), "quiet"), opacity: 0.28, curveness: 0.5 } })),
      }],
    };
  },
};

const save = (href, name) => {
  const link = document.createElement("a");
  link.href = href;
  link.download = `${name}.png`;
  link.click();
};

function start(figure) {
  const place = figure.querySelector(".drawing");
  const found = numbers(figure);
  const options = JSON.parse(figure.dataset.options);
  const chart = echarts.init(place, null, { renderer: "canvas" });
  const paint = (picture = false) => chart.setOption({ ...base(figure), ...draw[figure.dataset.kind](found, options, picture) }, true);
  paint();
  new ResizeObserver(() => chart.resize()).observe(place);
  document.addEventListener("theme", () => paint());
  chart.on("click", (one) => {
    const row = figure.dataset.kind === "statuses" ? one.data.value[1] : figure.dataset.kind === "counts" ? one.data.value[0] : one.dataIndex;
    const link = one.dataType === "node" ? null : found.links[row];
    if (link) location.assign(link);
  });
  const png = figure.querySelector("[data-png]");
  png.hidden = false;
  png.addEventListener("click", () => {
    paint(true);
    save(chart.getDataURL({ pixelRatio: 2, backgroundColor: colour("panel") }), figure.id);
    paint();
  });
}

// Save an SVG drawing as PNG, with the colours of the stylesheet.
function startDrawing(figure) {
  const png = figure.querySelector("[data-png]");
  png.hidden = false;
  png.addEventListener("click", () => {
    const svg = figure.querySelector("svg");
    const copy = svg.cloneNode(true);
    const parts = [...svg.querySelectorAll("path, circle, text")];
    [...copy.querySelectorAll("path, circle, text")].forEach((one, nth) => {
      const style = getComputedStyle(parts[nth]);
      for (const name of ["fill", "stroke", "stroke-width", "font-size", "text-anchor"]) one.setAttribute(name, style.getPropertyValue(name));
      one.setAttribute("font-family", "sans-serif");
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    const canvas = document.createElement("canvas");
    canvas.width = 2 * svg.width.baseVal.value;
    canvas.height = 2 * svg.height.baseVal.value;
    const image = new Image();
    image.addEventListener("load", () => {
      const pen = canvas.getContext("2d");
      pen.fillStyle = colour("panel");
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      save(canvas.toDataURL("image/png"), figure.id);
    });
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  });
}

// ECharts is one megabyte, so it loads when the first plot comes near the viewport.
let loading = null;
const loadLibrary = () => (loading ??= new Promise((resolve) => {
  const script = document.createElement("script");
  script.src = library;
  script.addEventListener("load", resolve);
  document.head.append(script);
}));

// A plot is drawn after the page has loaded and when it comes near the viewport.
const near = new IntersectionObserver(
  async (seen) => {
    for (const one of seen.filter((each) => each.isIntersecting)) {
      near.unobserve(one.target);
      await loadLibrary();
      start(one.target);
    }
  },
  { rootMargin: "300px" },
);
for (const figure of document.querySelectorAll("figure[data-kind]")) {
  if (figure.dataset.kind === "drawing") startDrawing(figure);
  else {
    figure.querySelector("details").addEventListener("toggle", () => unfold(figure));
    addEventListener("load", () => near.observe(figure));
  }
  if (figure.dataset.kind === "statuses") figure.querySelector(".drawing").style.height = `${figure.dataset.rows * 19 + 48}px`;
}
