// The form of a recipe, the YAML and command that it makes, and the run that it starts.
import { ask, at, fillSelect, make, say, show, tried, visible } from "./page.js";

const values = {};
let form = null, wired = false, waiting = null, asked = 0;

export async function openTrain() {
  await build();
  if (!wired) {
    wired = true;
    at("form").oninput = (event) => { if (event.target.id === "train-name") later(); };
    at("form").onsubmit = (event) => event.preventDefault();
    at("train-start").onclick = () => tried(async () => follow(await ask("training/start", filled())));
    at("train-stop").onclick = () => tried(async () => follow(await ask("training/stop", {})));
    at("train-open").onclick = () => show("runs", at("train-open").dataset.run);
    setInterval(async () => {
      if (visible("train")) try { follow(await ask("training")); } catch { /* the next look tries again */ }
    }, 1000);
    document.addEventListener("language", () => { if (form) { draw(); check(); } });
  }
  follow(await ask("training"));
}

async function build() {
  form = await ask("form?objective=" + encodeURIComponent(values.objective || "simpo"));
  const known = new Set(form.groups.flatMap((group) => group.fields.map((field) => field.name)));
  for (const key of Object.keys(values)) if (!known.has(key)) delete values[key]; // of another objective
  draw();
  await check();
}

function draw() {
  const open = new Set([...at("form-groups").querySelectorAll("details[open]")].map((box) => box.dataset.group));
  at("form-groups").replaceChildren(...form.groups.map((group) => {
    const box = make("details"), fields = make("div", "", { className: "fields" });
    box.dataset.group = group.name;
    box.open = group.name === "first" || open.has(group.name);
    fields.append(...group.fields.map(field));
    box.append(make("summary", say("group-" + group.name)), fields);
    return box;
  }));
}

function field(one) {
  const label = make("label", ""), input = control(one);
  input.id = "field-" + one.name;
  input.title = one.help;
  input.value = values[one.name] ?? "";
  input.oninput = () => {
    values[one.name] = input.value;
    if (one.name === "objective") tried(build); else later();
  };
  if (["model", "file"].includes(one.kind)) label.className = "wide";
  label.append(make("span", one.name), input);
  if (one.help && !["model", "file"].includes(one.kind)) label.append(make("span", one.help, { className: "field-help", lang: "en" }));
  return label;
}

function control(one) {
  const standard = one.default === null ? say("default") : `${say("default")}: ${one.default}`;
  const lists = { model: form.models, file: form.files, choice: one.choices, switch: one.choices };
  if (!(one.kind in lists)) return make("input", undefined, { placeholder: standard, inputMode: one.kind === "text" ? "text" : "decimal", autocomplete: "off" });
  const select = make("select");
  const empty = ["model_name_or_path", "dataset"].includes(one.name) ? say("fill") : standard;
  fillSelect(select, [["", empty], ...lists[one.kind].map((name) => [name, name])]);
  return select;
}

const filled = () => ({ name: at("train-name").value, values: Object.fromEntries(Object.entries(values).filter(([, value]) => value !== "")) });

function later() {
  clearTimeout(waiting);
  waiting = setTimeout(check, 250);
}

async function check() {
  const number = ++asked;
  let found = { yaml: "", command: "", wrong: say("fill-both") };
  if (values.model_name_or_path && values.dataset) {
    try { found = await ask("recipe", filled()); } catch (error) { found.wrong = error.message; }
  }
  if (number !== asked) return; // something newer was typed
  at("train-wrong").textContent = found.wrong;
  at("train-wrong").className = values.model_name_or_path && values.dataset ? "wrong" : "note";
  at("train-yaml").textContent = found.yaml;
  at("train-command").textContent = found.command;
  at("train-yaml").dataset.good = String(!found.wrong);
  buttons();
}

let job = { state: "none" };

function follow(state) {
  job = state;
  const output = at("train-output"), bottom = output.scrollTop + output.clientHeight > output.scrollHeight - 30;
  at("train-state").textContent = state.state === "none" ? "" : say("train-" + state.state, { name: state.name, code: state.exit_code });
  at("train-state").dataset.state = state.state;
  output.hidden = state.state === "none";
  if (output.textContent !== state.output) output.textContent = state.output;
  if (bottom) output.scrollTop = output.scrollHeight;
  at("train-open").hidden = state.state === "none";
  at("train-open").dataset.run = state.name;
  buttons();
}

function buttons() {
  const going = ["running", "stopping"].includes(job.state);
  at("train-stop").disabled = !going;
  at("train-start").disabled = going || at("train-yaml").dataset.good !== "true";
}
