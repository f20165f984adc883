"use strict";
// One slice: its points and columns, a filter, and one or two maps of it that share a camera.

const $ = (selector, within = document) => within.querySelector(selector);
const MISSING = "#c4c4c4", MISSING_DARK = "#4a4a4a";

/** Unpack a block of the page: base64 of gzip of little-endian numbers. */
async function unpack(id, NumberArray) {
  const packed = await fetch("data:application/octet-stream;base64," + document.getElementById(id).textContent);
  return new NumberArray(await new Response(packed.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

/** The kd-tree that the drawing library searches under the pointer: the cells lie in its order already, so that only its header is missing. */
function spatialIndex(x, y, nodeSize) {
  const n = x.length, Ids = n < 65536 ? Uint16Array : Uint32Array;
  const idBytes = n * Ids.BYTES_PER_ELEMENT, start = 8 + idBytes + (8 - (idBytes % 8)) % 8;
  const data = new ArrayBuffer(start + 8 * n);
  new Uint8Array(data, 0, 2).set([0xdb, (1 << 4) + 7]);  // KDBush, version 1, Float32Array
  new Uint16Array(data, 2, 1)[0] = nodeSize;
  new Uint32Array(data, 4, 1)[0] = n;
  const ids = new Ids(data, 8, n), coords = new Float32Array(data, start, 2 * n);
  for (let i = 0; i < n; i++) { ids[i] = i; coords[2 * i] = x[i]; coords[2 * i + 1] = y[i]; }
  return data;
}

class Cells {
  constructor(meta) { this.meta = meta; this.n = meta.n; this.columns = new Map(meta.columns.map(column => [column.name, column])); this.hidden = new Map(); }

  async load() {
    const [x, y] = await Promise.all([unpack("block-x", Uint16Array), unpack("block-y", Uint16Array)]);
    const [halfX, halfY] = this.meta.half;
    this.x = new Float32Array(this.n);
    this.y = new Float32Array(this.n);
    for (let i = 0; i < this.n; i++) { this.x[i] = x[i] / 32767.5 - halfX; this.y[i] = halfY - y[i] / 32767.5; }  // y of a file points down
    this.index = spatialIndex(this.x, this.y, this.meta.node_size);
    return this;
  }

  /** Codes of a column, one a cell: 0 is missing, then levels. */
  async codes(name) {
    const column = this.columns.get(name);
    column.codes ??= await unpack(column.block, column.wide ? Uint16Array : Uint8Array);
    return column.codes;
  }

  colours(name, isDark) {
    const column = this.columns.get(name), ramp = this.meta.ramp;
    const last = Math.max(1, column.n_levels - 1);
    const levels = column.levels ? column.colours
      : Array.from({ length: column.n_levels }, (_, level) => ramp[Math.round(level / last * (ramp.length - 1))]);
    return [isDark ? MISSING_DARK : MISSING, ...levels];
  }

  text(name, code) {
    const column = this.columns.get(name);
    if (code === 0) return "missing";
    if (column.levels) return column.levels[code - 1];
    const value = column.low + (code - 1) * column.step;
    return (column.is_exact ? value.toFixed(0) : value.toPrecision(3)) + (column.is_clipped && code === column.n_levels ? " or more" : "");
  }

  /** Rows that no filter hides; null where nothing is hidden. */
  async shown() {
    const active = [...this.hidden].filter(([, codes]) => codes.size);
    if (!active.length) return null;
    const columns = await Promise.all(active.map(async ([name, hidden]) => {
      const isHidden = new Uint8Array(65536);
      for (const code of hidden) isHidden[code] = 1;
      return [await this.codes(name), isHidden];
    }));
    const rows = [];
    for (let i = 0; i < this.n; i++) if (columns.every(([codes, isHidden]) => !isHidden[codes[i]])) rows.push(i);
    return rows;
  }
}

class TissueMap {
  constructor(cells, frame, page) {
    this.cells = cells; this.frame = frame; this.page = page; this.canvas = $("canvas", frame);
    const many = cells.n > 200000;  // squares without blending: the same at this size, and quicker
    this.plot = scatter.createScatterplot({
      canvas: this.canvas, pointSize: this.pointSize(), pointScaleMode: "linear", opacity: 1, colorBy: "valueA", renderPointsAsSquares: many,
      disableAlphaBlending: many, deselectOnDblClick: false, pointOutlineWidth: 1, pointSizeSelected: 2,
      cameraTarget: [0, 0], cameraDistance: this.distance(), ...this.theme(),
    });
    this.plot.subscribe("pointover", row => page.point(this, row));
    this.plot.subscribe("pointout", () => page.point(this, null));
    this.plot.subscribe("view", () => page.moved(this));
    frame.addEventListener("keydown", event => this.key(event));
    frame.addEventListener("pointermove", event => { this.pointer = [event.clientX, event.clientY]; });
  }

  theme() {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    return { backgroundColor: style.getPropertyValue("--map").trim(), pointColorHover: ink, pointColorActive: ink };
  }

  /** Side of a cell in pixels at which its slice looks closed. */
  pointSize() {
    const [halfX, halfY] = this.cells.meta.half, box = this.frame.getBoundingClientRect();
    const perUnit = Math.min(box.width / (2 * halfX), box.height / (2 * halfY));
    return Math.min(14, Math.max(1, 0.8 * perUnit * Math.sqrt(4 * halfX * halfY / this.cells.n) * this.page.pointScale));
  }

  async colour(name) {
    this.name = name;
    const codes = await this.cells.codes(name);
    await this.plot.set({ pointColor: this.cells.colours(name, this.page.isDark()) });  // drawn with the cells, not a second time after them
    await this.plot.draw({ x: this.cells.x, y: this.cells.y, valueA: codes },
      { zDataType: "categorical", wDataType: "categorical", spatialIndex: this.cells.index, preventFilterReset: true });
    this.isDrawn = true;
    this.frame.dataset.column = name;
    this.canvas.setAttribute("aria-label", `Map of ${this.cells.n.toLocaleString("en")} cells, coloured by ${this.cells.columns.get(name).title}`);
  }

  async filter(rows) {
    if (rows === null) await this.plot.unfilter(); else await this.plot.filter(rows);
    this.frame.dataset.shown = rows === null ? this.cells.n : rows.length;
  }

  /** Of the camera, from which the whole slice is seen. */
  distance() {
    const [halfX, halfY] = this.cells.meta.half, box = this.frame.getBoundingClientRect();
    return 1.04 * Math.max(halfY, halfX * box.height / box.width);
  }

  reset() { return this.plot.zoomToLocation([0, 0], this.distance()); }

  /** Micrometres of one pixel of the screen. */
  umPerPixel() { return this.plot.get("cameraDistance") * this.cells.meta.um_per_unit / (this.frame.clientHeight / 2); }

  key(event) {
    const [x, y] = this.plot.get("cameraTarget"), distance = this.plot.get("cameraDistance"), step = distance / 5;
    const to = { ArrowLeft: [x - step, y], ArrowRight: [x + step, y], ArrowUp: [x, y + step], ArrowDown: [x, y - step] }[event.key];
    if (to) this.plot.zoomToLocation(to, distance);
    else if (event.key === "+" || event.key === "=") this.plot.zoomToLocation([x, y], distance / 1.3);
    else if (event.key === "-") this.plot.zoomToLocation([x, y], distance * 1.3);
    else if (event.key === "0") this.reset();
    else if (event.key === "Enter") this.readCentre(x, y);
    else return;
    event.preventDefault();
  }

  /** For the keyboard: the cell in the middle of the map is read out as if the pointer were on it. */
  async readCentre(x, y) {
    let best = -1, least = Infinity;
    for (const i of await this.cells.shown() ?? this.cells.x.keys()) {
      const d = (this.cells.x[i] - x) ** 2 + (this.cells.y[i] - y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    const box = this.frame.getBoundingClientRect();
    this.pointer = [box.left + box.width / 2, box.top + box.height / 2];
    if (best >= 0) { this.plot.hover(best, { preventEvent: true }); this.page.point(this, best); }
  }
}

class TissuePage {
  constructor(cells, root) {
    this.cells = cells; this.root = root; this.pointScale = 1; this.maps = [];
    this.pick = $("#colour-by", root); this.other = $("#compare-with", root); this.tip = $("#tip"); this.live = $("#live", root);
  }

  isDark() { return document.documentElement.dataset.theme === "dark"; }

  async start() {
    this.maps = [new TissueMap(this.cells, $("#map", this.root), this)];
    this.pick.addEventListener("change", () => this.recolour());
    this.other.addEventListener("change", () => this.compare());
    $("#point-size", this.root).addEventListener("input", event => {
      this.pointScale = 2 ** event.target.value;
      this.sizePoints();
    });
    $("#reset", this.root).addEventListener("click", () => this.maps.forEach(map => map.reset()));
    $("#show-all", this.root).addEventListener("click", () => { this.cells.hidden.clear(); this.legend(); this.filter(); });
    document.addEventListener("themechange", () => this.retheme());
    await this.recolour();
    if (this.other.value) await this.compare();
    this.root.dataset.ready = Math.round(performance.now());
    for (const name of this.cells.meta.hover) this.cells.codes(name);  // read while nobody waits
  }

  sizePoints() { for (const map of this.maps) if (!map.frame.hidden) map.plot.set({ pointSize: map.pointSize() }); }

  async recolour() { await this.maps[0].colour(this.pick.value); this.legend(); }

  async compare() {
    const frame = $("#map-2", this.root), name = this.other.value;
    frame.hidden = !name;
    this.root.classList.toggle("two", Boolean(name));
    await new Promise(requestAnimationFrame);
    if (name && this.maps.length < 2) {
      this.maps.push(new TissueMap(this.cells, frame, this));
      const rows = await this.cells.shown();
      await this.maps[1].colour(name);
      await this.maps[1].filter(rows);
    } else if (name) await this.maps[1].colour(name);
    const shown = this.maps.filter(map => !map.frame.hidden);
    await Promise.all(shown.map(map => map.plot.set({ width: "auto", height: "auto" })));  // before the view is fitted to them
    this.sizePoints();
    await this.maps[0].reset();
    this.legend();
  }

  async retheme() {
    for (const map of this.maps) map.plot.set({ ...map.theme(), pointColor: this.cells.colours(map.name, this.isDark()) });
    this.legend();
  }

  /** One camera: the other map follows the one that was moved. */
  moved(map) {
    for (const other of this.maps) if (other !== map && other.isDrawn) other.plot.view(map.plot.get("cameraView"), { preventEvent: true });
    const um = map.umPerPixel() * 120, round = 10 ** Math.floor(Math.log10(um)), length = round * [5, 2, 1].find(n => n * round <= um);
    for (const bar of this.root.querySelectorAll(".scale")) {
      bar.style.width = `${length / map.umPerPixel()}px`;
      bar.textContent = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    }
  }

  async point(map, row) {
    this.pointed = row;
    if (row === null) { this.tip.hidden = true; return; }
    const names = [...new Set([...this.maps.map(one => one.name), ...this.cells.meta.hover])];
    const facts = await Promise.all(names.map(async name => [this.cells.columns.get(name).title, this.cells.text(name, (await this.cells.codes(name))[row])]));
    if (this.pointed !== row) return;  // the pointer went on meanwhile
    this.tip.hidden = false;
    const list = document.createElement("dl");
    for (const [title, value] of facts) {
      list.append(Object.assign(document.createElement("dt"), { textContent: title }), Object.assign(document.createElement("dd"), { textContent: value }));
    }
    this.tip.replaceChildren(list);
    this.live.textContent = facts.map(fact => fact.join(": ")).join("; ");
    const [left, top] = map.pointer ?? [0, 0];
    this.tip.style.left = `${Math.min(left + 14, innerWidth - this.tip.offsetWidth - 8)}px`;
    this.tip.style.top = `${Math.min(top + 14, innerHeight - this.tip.offsetHeight - 8)}px`;
  }

  async filter() {
    const rows = await this.cells.shown();
    await Promise.all(this.maps.map(map => map.filter(rows)));
    const n = rows === null ? this.cells.n : rows.length;
    $("#n-shown", this.root).textContent = `${n.toLocaleString("en")} of ${this.cells.n.toLocaleString("en")} cells shown`;
    $("#show-all", this.root).disabled = rows === null;
  }

  /** The legend of each map's column; a click hides or shows a class, a range hides what is outside. */
  legend() {
    const names = [...new Set(this.maps.filter((_, i) => !i || this.other.value).map(map => map.name))];
    $("#legend", this.root).replaceChildren(...names.map(name => this.legendOf(name)));
  }

  legendOf(name) {
    const column = this.cells.columns.get(name), colours = this.cells.colours(name, this.isDark());
    const hidden = this.cells.hidden.get(name) ?? new Set(), box = document.createElement("fieldset");
    this.cells.hidden.set(name, hidden);
    box.append(Object.assign(document.createElement("legend"), { textContent: column.title }));
    if (column.levels) box.append(...this.classes(column, colours, hidden)); else box.append(...this.range(column, colours, hidden));
    return box;
  }

  classes(column, colours, hidden) {
    const refresh = () => { this.legend(); this.filter(); };
    return colours.flatMap((colour, code) => {
      if (!column.counts[code]) return [];
      const row = document.createElement("div"), button = document.createElement("button"), only = document.createElement("button");
      row.className = "class";
      const text = this.cells.text(column.name, code);
      button.type = only.type = "button";
      button.setAttribute("aria-pressed", !hidden.has(code));
      button.dataset.code = code;
      button.title = "Show or hide these cells";
      button.append(Object.assign(document.createElement("span"), { className: "swatch", style: `background:${colour}` }),
        Object.assign(document.createElement("span"), { textContent: text, className: "name" }),
        Object.assign(document.createElement("span"), { textContent: column.counts[code].toLocaleString("en"), className: "count" }));
      button.addEventListener("click", () => { hidden.has(code) ? hidden.delete(code) : hidden.add(code); refresh(); this.refocus(column.name, code); });
      only.className = "only"; only.textContent = "only"; only.setAttribute("aria-label", `Show only ${text}`);
      only.addEventListener("click", () => { hidden.clear(); colours.forEach((_, other) => other !== code && hidden.add(other)); refresh(); });
      row.append(button, only);
      return [row];
    });
  }

  refocus(name, code) {
    const title = this.cells.columns.get(name).title;
    const box = [...this.root.querySelectorAll("#legend fieldset")].find(one => $("legend", one).textContent === title);
    $(`button[data-code="${code}"]`, box)?.focus();
  }

  range(column, colours, hidden) {
    const bar = Object.assign(document.createElement("div"), { className: "ramp", style: `background:linear-gradient(90deg,${colours.slice(1).join()})` });
    const ends = Object.assign(document.createElement("div"), { className: "ends" });
    const inputs = ["from", "to"].map((word, end) => {
      const shown = [...Array(column.n_levels).keys()].map(level => level + 1).filter(code => !hidden.has(code));
      const input = Object.assign(document.createElement("input"), { type: "range", min: 1, max: column.n_levels });
      input.value = end ? shown.at(-1) ?? column.n_levels : shown[0] ?? 1;
      input.setAttribute("aria-label", `Show ${column.title} ${word}`);
      return input;
    });
    const say = () => {
      const low = Math.min(...inputs.map(input => +input.value)), high = Math.max(...inputs.map(input => +input.value));
      ends.replaceChildren(...[low, high].map(code => Object.assign(document.createElement("span"), { textContent: this.cells.text(column.name, code) })));
      return [low, high];
    };
    for (const input of inputs) {
      input.addEventListener("input", say);
      input.addEventListener("change", () => {
        const [low, high] = say();
        hidden.clear();
        if (low > 1 || high < column.n_levels) for (let code = 0; code <= column.n_levels; code++) if (code < low || code > high) hidden.add(code);
        this.filter();
      });
    }
    say();
    return [bar, ends, ...inputs];
  }
}

(async () => {
  const root = $("#tissue");
  if (!root) return;
  const cells = await new Cells(JSON.parse($("#cells").textContent)).load();
  window.tissue = new TissuePage(cells, root);
  await window.tissue.start();
})().catch(error => { $("#failed").hidden = false; $("#failed").textContent = `This browser cannot draw the map (${error.message}); the tables below say the same.`; });
