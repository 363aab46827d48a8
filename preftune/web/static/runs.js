// Runs below the folder: a list, and one of them with its curves, which follow it while it goes on.
import { age, ask, at, make, number, say, visible } from "./page.js";
import { curves } from "./chart.js";

const EVERY = 3000; // milliseconds between two looks
let name = null, wired = false, newest = "";

export async function openRuns() {
  await list();
  if (!wired) {
    wired = true;
    setInterval(async () => {
      if (!visible("runs")) return;
      try { await list(); if (name) await showRun(name); } catch { /* the next look tries again */ }
    }, EVERY);
    document.addEventListener("language", () => { newest = ""; if (visible("runs")) openRuns().then(() => name && showRun(name)); });
  }
}

async function list() {
  const found = await ask("runs");
  at("runs-folder").textContent = found.runs.length ? say("runs-in", { folder: found.folder }) : `${say("no-runs")} ${say("runs-in", { folder: found.folder })}`;
  const focused = document.activeElement?.dataset?.run;
  at("run-list").replaceChildren(...found.runs.map((run) => {
    const button = make("button", run.name, { type: "button", "aria-current": String(run.name === name) });
    button.dataset.run = run.name;
    button.append(make("small", state(run)));
    button.onclick = () => showRun(run.name);
    const entry = make("li");
    entry.append(button);
    return entry;
  }));
  if (focused) [...at("run-list").querySelectorAll("button")].find((button) => button.dataset.run === focused)?.focus();
}

function state(run) {
  const parts = [];
  if (run.step !== null) parts.push(say("step", { step: run.step }));
  if (run.finished) parts.push(say("finished"));
  else if (run.age !== null) parts.push(say("last-line", { age: age(run.age) }));
  return parts.join(" · ");
}

export async function showRun(wanted) {
  const run = await ask("run?name=" + encodeURIComponent(wanted));
  name = wanted;
  for (const button of at("run-list").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.run === name));
  at("run").hidden = false;
  at("run-name").textContent = name;
  at("run-state").textContent = state(run);
  const now = JSON.stringify([name, run.step, run.log.length, run.log.at(-1), run.answers, run.finished]);
  if (now === newest) return; // what is read and scrolled stays as it is
  newest = now;
  at("run-figures").replaceChildren(...Object.entries(run.figures).map(([key, value]) => {
    const box = make("div");
    box.append(make("dt", key), make("dd", number(value)));
    return box;
  }));
  at("run-charts").replaceChildren(...run.charts.map(curves));
  at("run-answers").replaceChildren(...(run.answers.length ? run.answers.map(pair) : [make("p", say("no-answers"), { className: "note" })]));
  at("run-log").textContent = run.log.toReversed().join("\n") || say("nothing");
  for (const text of ["samples", "report", "recipe"]) at("run-" + text).textContent = run[text] || say("nothing");
}

function pair(watched) {
  const box = make("div", "", { className: "pair" }), columns = make("div", "", { className: "columns" });
  box.append(make("p", watched.prompt, { className: "text prompt" }), columns);
  watched.answers.forEach((answer, k) => {
    const side = make("div");
    side.append(make("div", say("at-step", { step: watched.steps[k] }), { className: "label" }), make("p", answer, { className: "text response" }));
    columns.append(side);
  });
  return box;
}
