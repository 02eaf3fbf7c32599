// Paths of rules over a surface. The rules and the surfaces are in playground-rules.js, printed from what the library
// recorded; here is only what is seen of them.
"use strict";

const { surfaces, rules } = window.playground;
const NEAR = 0.1;
const MOST = 5;
const DASHES = [[], [7, 3], [2.5, 2], [9, 2.5, 2, 2.5], [14, 4]];

const byName = (list, name) => list.find((each) => each.name === name);
const element = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--picture-${name}`).trim();
const short = (number) => (Number.isFinite(number) ? String(Number(number.toPrecision(3))) : "not finite");

// Paths

function path(rule, numbers, surface, start, steps) {
  // Each coordinate is a parameter of its own: a rule does the same with all elements.
  const points = [start];
  const states = start.map(() => rule.initial(numbers));
  for (let t = 1; t <= steps; t++) {
    const here = points[points.length - 1];
    const gradient = surface.gradient(...here);
    const next = here.map((theta, i) => rule.update(theta, gradient[i], states[i], numbers, t));
    points.push(next);
    if (!next.every(Number.isFinite)) break;
  }
  return points;
}

window.playground.path = path;

// Sliders: rates on a logarithmic scale, decays by their distance from one, others as they are

const SCALES = {
  log: { to: (v) => Math.log10(v), from: (s) => 10 ** s },
  decay: { to: (v) => -Math.log10(1 - v), from: (s) => 1 - 10 ** -s },
  plain: { to: (v) => v, from: (s) => s },
};

const state = { surface: surfaces[0].name, steps: 80, start: [...surfaces[0].start], chosen: [] };

function defaults(rule) {
  const numbers = Object.fromEntries(rule.hypers.map((hyper) => [hyper.name, hyper.value]));
  return { ...numbers, lr: rule.rates[state.surface] ?? numbers.lr };
}

function choose(name) {
  const taken = new Set(state.chosen.map((each) => each.series));
  const series = [0, 1, 2, 3, 4].find((index) => !taken.has(index));
  state.chosen.push({ name, series, numbers: defaults(byName(rules, name)), open: false });
}

function slider(each, hyper, index) {
  const scale = SCALES[hyper.scale];
  const row = document.createElement("p");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  label.textContent = hyper.name;
  label.htmlFor = output.htmlFor = input.id = `rule-${index}-${hyper.name}`;
  Object.assign(input, { type: "range", min: hyper.low, max: hyper.high, step: "any" });
  input.value = scale.to(each.numbers[hyper.name]);
  output.value = short(each.numbers[hyper.name]);
  input.addEventListener("input", () => {
    each.numbers[hyper.name] = scale.from(Number(input.value));
    output.value = short(each.numbers[hyper.name]);
    input.setAttribute("aria-valuetext", output.value);
    draw();
  });
  input.setAttribute("aria-valuetext", output.value);
  row.append(label, " ", input, " ", output);
  return row;
}

function card(each, index) {
  const rule = byName(rules, each.name);
  const box = document.createElement("fieldset");
  const legend = document.createElement("legend");
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Rule ${index + 1}`);
  for (const other of rules) select.add(new Option(other.name, other.name, false, other.name === each.name));
  select.addEventListener("change", () => {
    each.name = select.value;
    each.numbers = defaults(byName(rules, each.name));
    show();
    element("chosen").querySelectorAll("select")[index].focus();
  });
  const sample = document.createElement("span");
  sample.className = `sample sample-${each.series + 1}`;
  legend.append(sample, select);
  const link = document.createElement("a");
  link.href = rule.page;
  link.textContent = `About ${rule.name}`;
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${rule.name}`);
  remove.disabled = state.chosen.length === 1;
  remove.addEventListener("click", () => {
    state.chosen.splice(index, 1);
    show();
    element("add").focus();
  });
  const [first, ...others] = rule.hypers;
  box.append(legend, slider(each, first, index));
  if (others.length) {
    const more = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = others.map((hyper) => hyper.name).join(", ");
    more.open = each.open;
    more.addEventListener("toggle", () => (each.open = more.open));
    more.append(summary, ...others.map((hyper) => slider(each, hyper, index)));
    box.append(more);
  }
  const foot = document.createElement("p");
  foot.append(link, " ", remove);
  box.append(foot);
  return box;
}

// Drawing

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

function stroke(pen, points, series, close = 1) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.strokeStyle = colour(`series-${series + 1}`);
  pen.lineWidth = 2.2;
  pen.lineJoin = "round";
  pen.setLineDash(DASHES[series]);
  pen.stroke();
  pen.setLineDash([]);
  if (!close) return;
  pen.fillStyle = colour(`series-${series + 1}`);
  pen.beginPath();
  pen.arc(...points[points.length - 1], 4, 0, 2 * Math.PI);
  pen.fill();
}

function contours(pen, surface, width, height, right) {
  // Marching squares: where a level crosses the edges of a cell, its line goes through.
  const across = 120;
  const down = Math.round((across * height) / width);
  const value = (i, j) => surface.value(...right(i / across, j / down));
  const grid = Array.from({ length: down + 1 }, (_, j) => Array.from({ length: across + 1 }, (_, i) => value(i, j)));
  pen.strokeStyle = colour("contour");
  pen.lineWidth = 1;
  pen.beginPath();
  for (const level of surface.levels) {
    for (let j = 0; j < down; j++) {
      for (let i = 0; i < across; i++) {
        const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const crossed = [];
        corners.forEach(([a, b], k) => {
          const [c, d] = corners[(k + 1) % 4];
          const [one, two] = [grid[b][a] - level, grid[d][c] - level];
          if (one < 0 === two < 0) return;
          const part = one / (one - two);
          crossed.push([((a + part * (c - a)) / across) * width, ((b + part * (d - b)) / down) * height]);
        });
        for (let k = 0; k + 1 < crossed.length; k += 2) {
          pen.moveTo(...crossed[k]);
          pen.lineTo(...crossed[k + 1]);
        }
      }
    }
  }
  pen.stroke();
}

function drawPlane(surface, paths) {
  const canvas = element("plane");
  const [left, right] = surface.x;
  const [bottom, top] = surface.y;
  const { pen, width, height } = prepare(canvas, canvas.clientWidth * 0.6);
  const place = ([x, y]) => [((x - left) / (right - left)) * width, ((top - y) / (top - bottom)) * height];
  contours(pen, surface, width, height, (i, j) => [left + i * (right - left), top - j * (top - bottom)]);
  for (const minimum of surface.minima) {
    const [x, y] = place(minimum);
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1.8;
    pen.beginPath();
    pen.moveTo(x - 5, y - 5);
    pen.lineTo(x + 5, y + 5);
    pen.moveTo(x + 5, y - 5);
    pen.lineTo(x - 5, y + 5);
    pen.stroke();
  }
  for (const { each, points } of paths) {
    // Far outside, where a canvas can't draw.
    const seen = points.filter((point) => point.every((number) => Math.abs(number) < 1e4));
    stroke(pen, seen.map(place), each.series);
  }
  pen.strokeStyle = colour("ink");
  pen.lineWidth = 1.8;
  pen.beginPath();
  pen.arc(...place(state.start), 5, 0, 2 * Math.PI);
  pen.stroke();
}

function drawCurve(surface, paths) {
  const canvas = element("curve");
  const lowest = Math.min(...surface.minima.map((minimum) => surface.value(...minimum)));
  const margin = { left: 58, right: 12, top: 22, bottom: 30 };
  const { pen, width, height } = prepare(canvas, 200);
  const low = -8;
  const high = Math.max(1, Math.ceil(Math.log10(surface.value(...state.start) - lowest + 1e-12)));
  const place = (t, value) => [
    margin.left + (t / state.steps) * (width - margin.left - margin.right),
    margin.top +
      ((high - Math.min(high, Math.max(low, Math.log10(Math.max(value, 1e-300))))) / (high - low)) *
        (height - margin.top - margin.bottom),
  ];
  pen.font = `13px ${getComputedStyle(canvas).fontFamily}`;
  pen.textBaseline = "middle";
  for (let power = low; power <= high; power += 2) {
    const [x, y] = place(0, 10 ** power);
    pen.strokeStyle = colour("grid");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(width - margin.right, y);
    pen.stroke();
    pen.fillStyle = colour("muted");
    pen.textAlign = "right";
    pen.fillText(power === 0 ? "1" : `1e${power}`, x - 8, y);
  }
  pen.textAlign = "left";
  pen.fillText("height above the minimum", margin.left, 9);
  pen.textAlign = "right";
  pen.fillText(`step ${state.steps}`, width - margin.right, height - 10);
  for (const { each, points } of paths) {
    const values = points.map((point, t) => [t, surface.value(...point) - lowest]).filter(([, v]) => Number.isFinite(v));
    stroke(pen, values.map(([t, value]) => place(t, value)), each.series, 0);
  }
}

function tell(surface, paths) {
  const distance = (point) => Math.min(...surface.minima.map((minimum) => Math.hypot(...minimum.map((m, i) => m - point[i]))));
  const rows = paths.map(({ each, points }) => {
    const end = points[points.length - 1];
    const far = points.findLastIndex((point) => !(distance(point) < NEAR));
    const there = far + 1 < points.length ? String(far + 1) : "not yet";
    return [each.name, short(surface.value(...end)), short(distance(end)), there];
  });
  element("results").replaceChildren(
    ...rows.map(([name, ...cells], i) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      const sample = document.createElement("span");
      sample.className = `sample sample-${paths[i].each.series + 1}`;
      head.append(sample, name);
      row.append(
        head,
        ...cells.map((text) => {
          const cell = document.createElement("td");
          cell.textContent = text;
          return cell;
        }),
      );
      return row;
    }),
  );
  element("plane").setAttribute("aria-label", `Paths over the surface “${surface.title}”, told by the table below`);
}

function draw() {
  const surface = byName(surfaces, state.surface);
  const paths = state.chosen.map((each) => ({
    each,
    points: path(byName(rules, each.name), each.numbers, surface, state.start, state.steps),
  }));
  drawPlane(surface, paths);
  drawCurve(surface, paths);
  tell(surface, paths);
}

function show() {
  const surface = byName(surfaces, state.surface);
  element("surface").value = state.surface;
  element("lesson").textContent = surface.lesson;
  element("chosen").replaceChildren(...state.chosen.map(card));
  element("add").disabled = state.chosen.length >= MOST;
  place();
  draw();
}

function place() {
  const surface = byName(surfaces, state.surface);
  for (const [i, name] of ["x", "y"].entries()) {
    const input = element(`start-${name}`);
    [input.min, input.max] = surface[name];
    input.value = state.start[i];
    input.nextElementSibling.value = short(state.start[i]);
  }
  element("steps").value = state.steps;
  element("steps").nextElementSibling.value = state.steps;
}

function reset(surface) {
  Object.assign(state, { surface, start: [...byName(surfaces, surface).start] });
  for (const each of state.chosen) each.numbers = defaults(byName(rules, each.name));
  show();
}

// What the reader does

for (const surface of surfaces) element("surface").add(new Option(surface.title, surface.name));
element("surface").addEventListener("change", (event) => reset(event.target.value));
element("steps").addEventListener("input", (event) => {
  state.steps = Number(event.target.value);
  place();
  draw();
});
for (const [i, name] of ["x", "y"].entries()) {
  element(`start-${name}`).addEventListener("input", (event) => {
    state.start[i] = Number(event.target.value);
    place();
    draw();
  });
}
element("plane").addEventListener("click", (event) => {
  const surface = byName(surfaces, state.surface);
  const box = event.target.getBoundingClientRect();
  const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  state.start = [
    surface.x[0] + across * (surface.x[1] - surface.x[0]),
    surface.y[1] - down * (surface.y[1] - surface.y[0]),
  ];
  place();
  draw();
});
element("add").addEventListener("click", () => {
  const shown = new Set(state.chosen.map((each) => each.name));
  choose((rules.find((rule) => !shown.has(rule.name)) ?? rules[0]).name);
  show();
});
element("reset").addEventListener("click", () => {
  state.chosen = [];
  state.steps = 80;
  for (const name of ["SGD", "Adam", "Lion"]) choose(name);
  reset(surfaces[0].name);
});
new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("resize", draw);
element("board").hidden = false;
element("reset").click();
