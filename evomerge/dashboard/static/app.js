// Draws the figures, keeps live parts fresh, saves figures, copies texts. No page needs it to be read.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const plain = (text) => {
  // Names come from models, tasks and documents: they are text, whatever they look like.
  const element = document.createElement("span");
  element.textContent = text;
  return element.innerHTML;
};
const figureOf = (value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);

const tooltips = {
  point: (p, option) => {
    const name = plain(p.data[2] ?? `trial ${p.data[0]}`);
    return `${name}<br>${plain(p.seriesName)}: ${figureOf(p.data[1])} ${plain(option.yAxis.name)}`;
  },
  front: (p) => `${plain(p.data[2])}<br>${figureOf(p.data[0])}, ${figureOf(p.data[1])}`,
  bar: (p, option) => {
    const error = p.data && p.data.error ? ` ± ${figureOf(p.data.error)}` : "";
    return `${plain(p.name)}<br>${plain(p.seriesName)}: ${figureOf(p.value)}${error} ${plain(option.xAxis.name)}`;
  },
  cell: (p, option) => {
    const [x, y, value, method] = p.data;
    const name = `${plain(option.yAxis.data[y])}, ${plain(option.xAxis.name)} ${plain(option.xAxis.data[x])}`;
    return `${name}<br>${plain(method)}${option.visualMap.pieces ? "" : `: ${figureOf(value)}`}`;
  },
};

function draw(figure, content) {
  const plot = figure.querySelector(".plot");
  figure.querySelector("h3").textContent = content.title;
  plot.setAttribute("aria-label", content.summary);
  plot.style.height = `${content.height}px`;
  const option = structuredClone(content.option);
  const tooltip = option.tooltip;
  if (tooltip && tooltips[tooltip.named]) {
    tooltip.formatter = (p) => (p.componentType === "series" ? tooltips[tooltip.named](p, option) : "");
  }
  figure.content = content;
  const old = echarts.getInstanceByDom(plot);
  if (old && old.dark !== dark.matches) old.dispose();
  const chart = echarts.getInstanceByDom(plot) ?? echarts.init(plot, dark.matches ? "dark" : null);
  chart.dark = dark.matches;
  chart.setOption(option, { notMerge: true });
  chart.resize();
  chart.off("click");
  chart.on("click", (p) => {
    const trial = trialOf(p, content);
    const run = location.pathname.match(/^\/run\/[^/]+/);
    if (run && trial !== undefined) location.href = `${run[0]}/trial/${trial}`;
  });
  figure.dataset.drawn = "yes";
}

function trialOf(p, content) {
  if (content.option.tooltip.named === "point") return p.data[0];
  if (content.option.tooltip.named === "front") return p.data[3];
  return p.data && p.data.trial;
}

async function load(figure) {
  const inside = figure.querySelector("script[type='application/json']");
  if (inside) return draw(figure, JSON.parse(inside.textContent));
  const answer = await fetch(figure.dataset.src);
  if (answer.status === 204) figure.hidden = true;
  else if (answer.ok) { figure.hidden = false; draw(figure, await answer.json()); }
  else figure.querySelector(".plot").textContent = "This figure cannot be drawn now.";
  figure.dataset.loaded = "yes";
}

function save(figure, kind) {
  // Drawn anew at a fixed width on white, so that it looks alike everywhere.
  const { option, height, file } = figure.content;
  const place = document.createElement("div");
  const size = { width: 1000, height, renderer: kind === "svg" ? "svg" : "canvas" };
  const chart = echarts.init(place, null, size);
  chart.setOption({ ...structuredClone(option), backgroundColor: "#ffffff" });
  const address = chart.getDataURL({ type: kind, pixelRatio: 2, backgroundColor: "#ffffff" });
  chart.dispose();
  const link = document.createElement("a");
  link.href = address;
  link.download = `${file}.${kind}`;
  link.click();
}

async function refresh() {
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const waiting = document.getElementById("waiting");
  if (waiting && !page.getElementById("waiting")) return location.reload();
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (!fresh || fresh.innerHTML === part.innerHTML) continue;
    // What a person has ticked, or is about to use, stays.
    if (part.contains(document.activeElement) || part.querySelector("input:checked")) continue;
    part.innerHTML = fresh.innerHTML;
  }
  for (const figure of document.querySelectorAll("figure[data-src]")) await load(figure);
}

function watch() {
  const names = document.body.dataset.watched;
  if (document.body.dataset.static || (!names && !document.querySelector("[data-live]"))) return;
  const query = names ? `?${names.split("&").map((name) => `run=${encodeURIComponent(name)}`).join("&")}` : "";
  const source = new EventSource(`/events${query}`);
  let last = null;
  let busy = false;
  source.onmessage = async (event) => {
    if (last !== null && last !== event.data && !busy) {
      busy = true;
      await refresh();
      busy = false;
      document.getElementById("live").textContent = `updated ${new Date().toLocaleTimeString()}`;
    }
    last = event.data;
  };
  source.onerror = () => { document.getElementById("live").textContent = "no connection; trying again"; };
}

document.addEventListener("click", async (event) => {
  const saving = event.target.closest("[data-save]");
  const copying = event.target.closest("[data-copy]");
  if (saving) save(saving.closest("figure"), saving.dataset.save);
  if (copying) {
    await navigator.clipboard.writeText(document.querySelector(copying.dataset.copy).textContent);
    copying.textContent = "Copied";
  }
});
window.addEventListener("resize", () => {
  for (const plot of document.querySelectorAll(".plot")) echarts.getInstanceByDom(plot)?.resize();
});
dark.addEventListener("change", () => {
  for (const figure of document.querySelectorAll("figure[data-drawn]")) draw(figure, figure.content);
});
async function start() {
  // Those marked late take seconds in a large run: the others do not wait for them.
  const figures = [...document.querySelectorAll("figure.chart")];
  await Promise.all(figures.filter((figure) => !figure.dataset.late).map(load));
  await Promise.all(figures.filter((figure) => figure.dataset.late).map(load));
  document.body.dataset.ready = "yes";
}
start();
watch();
