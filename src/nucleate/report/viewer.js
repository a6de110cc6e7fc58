"use strict";
// Draws unit cells on canvases (rotate: drag or arrow keys, zoom: + and -), sorts tables, and
// shows a chosen crystal large. Data come from the JSON block of the page; nothing is fetched.
(() => {
  const cells = JSON.parse(document.getElementById("cells").textContent);
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  const turn = (axis, angle) => {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === "x" ? [1, 0, 0, 0, c, -s, 0, s, c] : [c, 0, s, 0, 1, 0, -s, 0, c];
  };
  const multiply = (a, b) => {
    const out = [];
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < 3; j++)
        out.push(a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]);
    return out;
  };
  const shade = (hex, by) => {
    const v = parseInt(hex.slice(1), 16);
    const mix = (x) => Math.round(by < 0 ? x * (1 + by) : x + (255 - x) * by);
    return `rgb(${mix(v >> 16)},${mix((v >> 8) & 255)},${mix(v & 255)})`;
  };

  class Viewer {
    constructor(canvas) {
      this.canvas = canvas;
      canvas.addEventListener("pointerdown", (e) => {
        this.last = [e.clientX, e.clientY];
        canvas.setPointerCapture(e.pointerId);
      });
      canvas.addEventListener("pointermove", (e) => {
        if (!this.last) return;
        this.rotate((e.clientX - this.last[0]) / 110, (e.clientY - this.last[1]) / 110);
        this.last = [e.clientX, e.clientY];
      });
      for (const end of ["pointerup", "pointercancel"])
        canvas.addEventListener(end, () => { this.last = null; });
      canvas.addEventListener("keydown", (e) => {
        const step = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0],
                       ArrowUp: [0, -0.12], ArrowDown: [0, 0.12] }[e.key];
        if (step) this.rotate(...step);
        else if (e.key === "+" || e.key === "=") { this.zoom *= 1.1; this.draw(); }
        else if (e.key === "-") { this.zoom /= 1.1; this.draw(); }
        else return;
        e.preventDefault();
      });
      if (canvas.dataset.cell !== undefined) this.show(+canvas.dataset.cell);
    }
    show(index) {
      this.cell = cells[index];
      // crystallographers' view: c up, looking along a, turned a little
      const up = [0, 1, 0, 0, 0, 1, 1, 0, 0];
      this.rotation = multiply(turn("x", 0.28), multiply(turn("y", -0.42), up));
      this.zoom = 1;
      this.pieces = [];  // of the cell's edges, without what lies inside an atom
      const inside = (p) => this.cell.atoms.some((a) =>
        Math.hypot(p[0] - a[0], p[1] - a[1], p[2] - a[2]) < this.cell.elements[a[3]].radius);
      for (const [a, b] of this.cell.edges) {
        const at = (t) => [0, 1, 2].map((n) => a[n] + (b[n] - a[n]) * t);
        for (let i = 0; i < 24; i++)
          if (!inside(at((i + 0.5) / 24))) this.pieces.push([at(i / 24), at((i + 1) / 24)]);
      }
      this.reach = Math.max(1, ...this.cell.atoms.map((a) => Math.hypot(a[0], a[1], a[2])
        + this.cell.elements[a[3]].radius),
        ...this.cell.edges.flat().map((p) => Math.hypot(p[0], p[1], p[2])));
      this.draw();
    }
    rotate(x, y) {
      this.rotation = multiply(turn("x", y), multiply(turn("y", x), this.rotation));
      this.draw();
    }
    draw() {
      const { canvas, cell, rotation: r } = this;
      if (!cell || !canvas.clientWidth) return;
      const ratio = window.devicePixelRatio || 1;
      const width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const g = canvas.getContext("2d");
      g.scale(ratio, ratio);
      g.lineCap = "butt";
      const scale = (this.zoom * 0.47 * Math.min(width, height)) / this.reach;
      const far = 4.5 * this.reach;
      const project = (p) => {
        const x = r[0] * p[0] + r[1] * p[1] + r[2] * p[2];
        const y = r[3] * p[0] + r[4] * p[1] + r[5] * p[2];
        const z = r[6] * p[0] + r[7] * p[1] + r[8] * p[2];
        const k = (scale * far) / (far - z);
        return { x: width / 2 + k * x, y: height / 2 - k * y, z, k };
      };
      const things = [];
      for (const [a, b] of this.pieces) {
        const from = project(a), to = project(b);
        things.push({ z: (from.z + to.z) / 2, from, to, width: 1,
                      colour: dark() ? "#7d8794" : "#8a94a3" });
      }
      const points = cell.atoms.map(project);
      for (const [i, j] of cell.bonds) {
        const middle = [0, 1, 2].map((n) => (cell.atoms[i][n] + cell.atoms[j][n]) / 2);
        const half = project(middle);
        for (const n of [i, j]) {
          const atom = cell.atoms[n], radius = 0.92 * cell.elements[atom[3]].radius;
          const length = Math.hypot(...[0, 1, 2].map((k) => middle[k] - atom[k]));
          if (radius >= length) continue;
          const end = project([0, 1, 2].map((k) => atom[k] + (middle[k] - atom[k]) * radius / length));
          things.push({ z: (half.z + end.z) / 2, from: half, to: end, width: 0.13 * half.k,
                        colour: shade(cell.elements[cell.atoms[n][3]].colour, -0.25) });
        }
      }
      points.forEach((p, n) => things.push({ z: p.z, atom: p, kind: cell.elements[cell.atoms[n][3]] }));
      things.sort((a, b) => a.z - b.z);
      for (const t of things) {
        if (t.atom) {
          const radius = t.kind.radius * t.atom.k, { x, y } = t.atom;
          const fill = g.createRadialGradient(x - 0.35 * radius, y - 0.4 * radius, 0.05 * radius,
                                              x, y, radius);
          fill.addColorStop(0, shade(t.kind.colour, 0.65));
          fill.addColorStop(0.45, t.kind.colour);
          fill.addColorStop(1, shade(t.kind.colour, -0.38));
          g.beginPath();
          g.arc(x, y, radius, 0, 2 * Math.PI);
          g.fillStyle = fill;
          g.fill();
          g.lineWidth = 0.7;
          g.strokeStyle = shade(t.kind.colour, -0.6);
          g.stroke();
        } else {
          g.beginPath();
          g.moveTo(t.from.x, t.from.y);
          g.lineTo(t.to.x, t.to.y);
          g.lineWidth = t.width;
          g.strokeStyle = t.colour;
          g.stroke();
        }
      }
    }
  }

  const viewers = [...document.querySelectorAll("canvas.cell")].map((c) => new Viewer(c));
  const redraw = () => viewers.forEach((v) => v.draw());
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  const dialog = document.getElementById("large");
  if (dialog) {
    const big = viewers.find((v) => v.canvas.id === "large-cell");
    for (const button of document.querySelectorAll("button[data-show]"))
      button.addEventListener("click", () => {
        const row = document.getElementById(`crystal-${button.dataset.show}`);
        document.getElementById("large-title").replaceChildren(
          row.cells[1].firstElementChild.cloneNode(true), " · ",
          ...row.cells[2].cloneNode(true).childNodes);
        const legend = document.getElementById("large-legend");
        legend.replaceChildren();
        for (const e of cells[+button.dataset.show].elements) {
          const swatch = document.createElement("i");
          swatch.style.background = e.colour;
          const item = document.createElement("span");
          item.append(swatch, e.symbol);
          legend.append(item);
        }
        dialog.showModal();
        big.show(+button.dataset.show);
        big.canvas.focus();
      });
    document.getElementById("large-close").addEventListener("click", () => dialog.close());
  }

  for (const table of document.querySelectorAll("table.sortable"))
    table.querySelectorAll("th button").forEach((button) =>
      button.addEventListener("click", () => {
        const head = button.closest("th"), index = head.cellIndex, body = table.tBodies[0];
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => row.cells[index].dataset.v ?? row.cells[index].textContent;
        const rows = [...body.rows].sort((a, b) => {
          const x = value(a), y = value(b);
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return up ? order : -order;
        });
        body.append(...rows);
      }));

  const opened = [];
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])")
    .forEach((d) => { d.open = true; opened.push(d); }));
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });
  document.documentElement.dataset.ready = "yes";
})();
