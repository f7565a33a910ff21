"use strict";
// Draws the charts, and shows of charts, tables and examples what fits the reader's choice of task, metric and models.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const boxes = [...document.querySelectorAll("input[type=checkbox]")];
  const chosen = { task: "all", metric: "", entries: new Set() };

  function read() {
    chosen.task = document.getElementById("task").value;
    chosen.metric = document.getElementById("metric")?.value;
    chosen.entries = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const summary = document.querySelector("#entries summary");
    if (summary) summary.textContent = `Models: ${chosen.entries.size} of ${boxes.length}`;
  }

  const anyChosen = (entries) => !entries?.length || entries.some((entry) => chosen.entries.has(entry));

  function elementFits({ task, entries }) {
    const fitsTask = !task || task === chosen.task || (chosen.task === "all" && task !== "all");
    return fitsTask && anyChosen(entries ? entries.split(" ") : []);
  }

  function traceFits({ meta }) {
    if (!meta) return true;
    return anyChosen(meta.entries) && (!meta.task || meta.task === chosen.task) && (!meta.metric || meta.metric === chosen.metric);
  }

  function layoutOf(figure, traces) {
    const layout = structuredClone(figure.layout);
    layout.margin = { l: 8, r: 12, t: 12, b: 40 };
    layout.font = { family: "system-ui, sans-serif", size: 11 };
    layout.height = figure.height;
    if (figure.row_height) {
      const rows = new Set(traces.flatMap((trace) => trace.y)).size;
      layout.height = 70 + figure.row_height * rows;
    }
    layout.showlegend = false; // colours are explained once for all charts
    for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { automargin: true, gridcolor: "#e8ecf0", zerolinecolor: "#c5ccd3" });
    layout.hoverlabel = { align: "left" };
    layout.dragmode = false; // a finger on a chart scrolls the page
    return layout;
  }

  async function draw(element) {
    const figure = figures[element.id];
    const traces = structuredClone(figure.traces.filter(traceFits));
    const plot = element.querySelector(".plot");
    plot.hidden = traces.length === 0;
    element.querySelector(".none").hidden = traces.length > 0;
    if (!traces.length) return;
    await Plotly.react(plot, traces, layoutOf(figure, traces), { responsive: true, displaylogo: false, displayModeBar: false });
  }

  let turn = 0;
  async function update() {
    const own = ++turn;
    document.documentElement.dataset.ready = "no";
    read();
    for (const element of document.querySelectorAll("[data-task], [data-entries]")) element.hidden = !elementFits(element.dataset);
    for (const tasks of document.querySelectorAll("#examples details[data-task]")) tasks.open = tasks.dataset.task === chosen.task;
    let rest = performance.now();
    for (const element of document.querySelectorAll("figure")) {
      if (element.hidden) continue;
      await draw(element);
      if (performance.now() - rest > 50) {
        await new Promise((resume) => setTimeout(resume));
        rest = performance.now();
      }
      if (own !== turn) return; // the reader chose anew meanwhile
    }
    document.documentElement.dataset.ready = "yes";
  }

  document.getElementById("filters").addEventListener("change", update);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-check]")) {
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = Boolean(button.dataset.check);
      update();
    });
  }
  document.addEventListener("click", (event) => {
    const menu = document.getElementById("entries");
    if (menu && !menu.contains(event.target)) menu.open = false;
  });
  update();
})();
