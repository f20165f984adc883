"use strict";
// Light and dark, and the charts.

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.querySelector("#theme").setAttribute("aria-pressed", theme === "dark");
  document.dispatchEvent(new Event("themechange"));
}

function layoutOf(figure) {
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const layout = { ...figure.layout, template: "none", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit", size: 13 } };
  for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...figure.layout[name] };
  return layout;
}

function drawChart(chart) {
  if (!window.Plotly) document.head.append(Object.assign(document.createElement("script"), { textContent: document.querySelector("#plotly").textContent }));
  const figure = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
  Plotly.react(chart, figure.data, layoutOf(figure), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
}

/** Charts are drawn when they come into view: plotly alone takes seconds to start where there is much else to do, and the map comes first. */
function watchCharts() {
  const charts = [...document.querySelectorAll("[data-figure]")];
  const watch = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) { watch.unobserve(target); drawChart(target); }
  });
  charts.forEach(chart => watch.observe(chart));
  document.addEventListener("themechange", () => charts.filter(chart => chart.data).forEach(drawChart));
  addEventListener("beforeprint", () => charts.filter(chart => !chart.data).forEach(drawChart));
}

(() => {
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  setTheme(wanted.matches ? "dark" : "light");
  wanted.addEventListener("change", () => setTheme(wanted.matches ? "dark" : "light"));
  document.querySelector("#theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  addEventListener("DOMContentLoaded", watchCharts);
})();
