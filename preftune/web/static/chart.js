// Curves and histograms as SVG.
import { make, number, say } from "./page.js";

const W = 360, H = 190, LEFT = 46, BOTTOM = 24, TOP = 8, RIGHT = 8;

function shape(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function frame(title, unit, labels) {
  const figure = make("figure"), svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  figure.append(make("figcaption", title), make("div", unit, { className: "label" }), svg);
  const key = make("div", "", { className: "key" });
  labels.forEach((label, k) => {
    const entry = make("span", "");
    entry.append(make("i", "", { className: "l" + k }), label);
    key.append(entry);
  });
  figure.append(key);
  return [figure, svg];
}

function axes(svg, x, y, scaleX, scaleY) {
  for (let k = 0; k <= 3; k++) {
    const value = y[0] + ((y[1] - y[0]) * k) / 3, place = scaleY(value);
    svg.append(shape("line", { x1: LEFT, x2: W - RIGHT, y1: place, y2: place, class: "grid" }));
    svg.append(shape("text", { x: LEFT - 4, y: place + 3, "text-anchor": "end" }, number(value)));
  }
  const ends = [[x[0], "start"], [(x[0] + x[1]) / 2, "middle"], [x[1], "end"]];
  for (const [value, anchor] of x[0] === x[1] ? ends.slice(0, 1) : ends) {
    svg.append(shape("text", { x: scaleX(value), y: H - 8, "text-anchor": anchor }, number(Math.round(value))));
  }
}

export function curves(chart) {
  const [figure, svg] = frame(say(chart.title), `${say(chart.unit)} · ${say("optimizer step")}`, chart.lines.map((line) => say(line.label)));
  const points = chart.lines.flatMap((line) => line.points);
  const x = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  let y = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  if (y[0] === y[1]) y = [y[0] - (Math.abs(y[0]) || 1) * 0.1, y[1] + (Math.abs(y[1]) || 1) * 0.1];
  const scaleX = (v) => (x[1] === x[0] ? (LEFT + W - RIGHT) / 2 : LEFT + ((v - x[0]) / (x[1] - x[0])) * (W - LEFT - RIGHT));
  const scaleY = (v) => H - BOTTOM - ((v - y[0]) / (y[1] - y[0])) * (H - BOTTOM - TOP);
  axes(svg, x, y, scaleX, scaleY);
  chart.lines.forEach((line, k) => {
    const places = line.points.map(([step, value]) => [scaleX(step).toFixed(1), scaleY(value).toFixed(1)]);
    svg.append(shape("polyline", { points: places.map((p) => p.join(",")).join(" "), class: "l" + k }));
    if (places.length <= 40) for (const [cx, cy] of places) svg.append(shape("circle", { cx, cy, r: 2.2, class: "l" + k }));
  });
  return figure;
}

export function histogram(title, unit, found) {
  const names = Object.keys(found.counts), bins = found.counts[names[0]]?.length ?? 0;
  const [figure, svg] = frame(title, unit, names.map((name) => say(name)));
  const top = Math.max(1, ...names.flatMap((name) => found.counts[name]));
  const x = [0, bins * found.width], y = [0, top];
  const scaleX = (v) => LEFT + (v / x[1]) * (W - LEFT - RIGHT), scaleY = (v) => H - BOTTOM - (v / top) * (H - BOTTOM - TOP);
  axes(svg, x, y, scaleX, scaleY);
  const wide = (W - LEFT - RIGHT) / bins / names.length;
  names.forEach((name, k) => found.counts[name].forEach((count, bin) => {
    const left = scaleX(bin * found.width) + k * wide;
    if (count) svg.append(shape("rect", { x: left.toFixed(1), y: scaleY(count).toFixed(1), width: Math.max(1, wide - 0.5).toFixed(1), height: (H - BOTTOM - scaleY(count)).toFixed(1), class: "l" + k }));
  }));
  return figure;
}
