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

function drawCharts() {
  for (const chart of document.querySelectorAll("[data-figure]")) {
    const figure = JSON.parse(document.getElementById(chart.dataset.figure).textContent);
    Plotly.react(chart, figure.data, layoutOf(figure), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }
}

(() => {
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  setTheme(wanted.matches ? "dark" : "light");
  wanted.addEventListener("change", () => setTheme(wanted.matches ? "dark" : "light"));
  document.querySelector("#theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  if (window.Plotly) {
    drawCharts();
    document.addEventListener("themechange", drawCharts);
  }
})();
