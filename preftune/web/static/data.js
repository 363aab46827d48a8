// A preference file: what was understood, lengths, and rows with scored tokens and differences.
import { ask, at, fillSelect, make, number, problem, say } from "./page.js";
import { histogram } from "./chart.js";

let page = 0, pages = 0, shown = null, ready = false;

export async function openData() {
  const [found, models] = await Promise.all([ask("files"), ask("models")]);
  const [file, model] = [at("data-file").value, at("data-model").value];
  fillSelect(at("data-file"), found.files.map((name) => [name, name]), file || undefined);
  fillSelect(at("data-model"), [["", say("texts-alone")], ...models.models.map((name) => [name, name])], ready ? model : models.pair[1] ?? "");
  if (!ready) {
    fillSelect(at("data-objective"), found.objectives.map((name) => [name, name]), "simpo");
    wire();
  }
  ready = true;
  at("data-look").disabled = !found.files.length;
  problem(found.files.length ? null : new Error(say("no-file")));
}

function wire() {
  at("look").onsubmit = (event) => { event.preventDefault(); look(0); };
  at("data-back").onclick = () => look(page - 1);
  at("data-next").onclick = () => look(page + 1);
  document.addEventListener("language", () => {
    if (at("data-model").options.length) at("data-model").options[0].textContent = say("texts-alone");
    if (shown) draw(shown);
  });
}

async function look(wanted) {
  const asked = new URLSearchParams({
    file: at("data-file").value, model: at("data-model").value, objective: at("data-objective").value, columns: at("data-columns").value,
    max_length: at("data-length").value || "1024", rows: at("data-rows").value || "1000", page: String(wanted),
  });
  at("data-look").disabled = true;
  at("data-look").textContent = say("looking");
  problem(null);
  try {
    shown = await ask("rows?" + asked);
    page = wanted;
    draw(shown);
  } catch (error) {
    at("data-found").hidden = true;
    problem(error);
  }
  at("data-look").disabled = false;
  at("data-look").textContent = say("look");
}

function draw(found) {
  pages = found.pages;
  at("data-found").hidden = false;
  at("data-mapping").textContent = found.mapping.join("; ");
  const out = Object.entries(found.left_out).map(([reason, count]) => `${count} ${reason}`).join(", ") || say("none");
  at("data-counts").textContent = say("row-counts", { rows: found.rows, out, cut: found.cut });
  at("data-warnings").replaceChildren(...found.warnings.map((line) => make("li", line)));
  at("data-unit").textContent = say("unit-" + found.unit);
  at("data-lengths").replaceChildren(...table(found.lengths));
  at("data-histogram").replaceChildren(histogram(say("histogram"), say(found.unit), found.histogram));
  at("data-longer").textContent = found.longer === null ? "" : say("longer-share", { share: (100 * found.longer).toFixed(0) });
  at("data-page").replaceChildren(...found.page.map((row) => drawRow(row, found.unit)));
  at("data-number").textContent = say("page-of", { page: page + 1, pages });
  at("data-back").disabled = page === 0;
  at("data-next").disabled = page + 1 >= pages;
}

function table(lengths) {
  const columns = ["mean", "median", "p90", "p99", "longest"], head = make("tr");
  head.append(make("th", ""), ...columns.map((name) => make("th", say(name), { scope: "col" })));
  return [head, ...Object.entries(lengths).map(([name, one]) => {
    const line = make("tr");
    line.append(make("th", say(name), { scope: "row" }), ...columns.map((column) => make("td", number(column === "mean" ? Math.round(one.mean) : one[column]))));
    return line;
  })];
}

function drawRow(row, unit) {
  const box = make("article", "", { className: "pair" }), columns = make("div", "", { className: "columns" });
  box.append(make("div", say("row", { row: row.row }), { className: "label" }), text(row.prompt, "text prompt", false), columns);
  for (const response of row.responses) {
    const side = make("div");
    side.append(make("div", `${say(response.name)} · ${say("row-" + unit, { count: response.length })}`, { className: "label" }));
    side.append(text(response.pieces, "text response", unit === "tokens"));
    columns.append(side);
  }
  return box;
}

// Pieces that are alike stand in one element.
function text(pieces, className, scored) {
  const box = make("p", "", { className });
  let open = null, differs = null;
  for (const [piece, marked] of pieces) {
    if (open === null || marked !== differs) {
      open = make(marked ? "mark" : "span", "");
      if (scored) open.className = "scored";
      differs = marked;
      box.append(open);
    }
    open.textContent += piece;
  }
  return box;
}
