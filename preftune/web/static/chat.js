// Two models side by side: the same question, answers as they are written, a vote.
import { ask, at, fillSelect, make, problem, request, say, tried } from "./page.js";

const sides = [0, 1].map(() => ({ turns: [], box: null, text: "", note: null }));
const votes = { count: 0, file: "" };
let last = null; // {id, question, done, voted, same}
let running = null; // AbortController
let ready = false;

const both = () => at("both").checked && at("model-1").options.length > 0;
const used = () => (both() ? [0, 1] : [0]);

export async function openChat() {
  const found = await ask("models");
  const chosen = [0, 1].map((side) => (ready ? at("model-" + side).value : found.pair[side]));
  const entries = found.models.map((name) => [name, name]);
  for (const side of [0, 1]) fillSelect(at("model-" + side), entries, chosen[side]);
  votes.count = found.votes;
  votes.file = found.votes_file;
  at("presets").replaceChildren(...found.questions.map((text) => {
    const button = make("button", text, { type: "button" });
    button.onclick = () => { at("question").value = text; send(); };
    return button;
  }));
  if (!ready && found.models.length < 2) at("both").checked = false;
  if (!ready) wire();
  ready = true;
  at("sides").classList.toggle("one", !both());
  at("send").disabled = !found.models.length;
  if (!found.models.length) at("vote-note").textContent = say("no-models");
}

function wire() {
  at("ask").onsubmit = (event) => { event.preventDefault(); send(); };
  at("question").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  };
  at("stop").onclick = () => running?.abort();
  at("reset").onclick = reset;
  at("both").onchange = () => { at("sides").classList.toggle("one", !both()); reset(); };
  for (const side of [0, 1]) {
    at("vote-" + side).onclick = () => vote(side);
    at("model-" + side).onchange = reset;
  }
  document.addEventListener("keydown", (event) => {
    const side = { Digit1: 0, Digit2: 1 }[event.code];
    if (event.altKey && side !== undefined && !at("chat").hidden) { event.preventDefault(); at("vote-" + side).click(); }
  });
  document.addEventListener("language", () => { for (const side of [0, 1]) note(side); voteNote(); });
}

function reset() {
  running?.abort();
  last = null;
  for (const side of [0, 1]) {
    Object.assign(sides[side], { turns: [], box: null, text: "", note: null });
    at("talk-" + side).replaceChildren();
    note(side);
  }
  voteNote();
}

function settings() {
  const numbers = {};
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if (at(name).value !== "") numbers[name] = Number(at(name).value);
  }
  return { ...numbers, system: at("system").value };
}

async function send() {
  const question = at("question").value.trim();
  if (!question || running || at("send").disabled) return;
  problem(null);
  running = new AbortController();
  busy(true);
  if (!at("history").checked) for (const side of sides) side.turns = [];
  const same = JSON.stringify(sides[0].turns) === JSON.stringify(sides[1].turns);
  last = { id: null, seed: null, question, done: false, voted: false, same };
  const body = { question, sides: used().map((side) => ({ model: at("model-" + side).value, turns: sides[side].turns })), ...settings() };
  for (const side of used()) begin(side, question);
  at("question").value = "";
  voteNote();
  try {
    await listen(await request("ask", body, { signal: running.signal }));
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
    for (const side of used()) if (!sides[side].note?.finish) sides[side].note = { ...sides[side].note, finish: "cancelled" };
  }
  finish(question);
}

function begin(side, question) {
  const talk = at("talk-" + side);
  sides[side].box = make("p", "", { className: "said assistant writing" });
  sides[side].text = "";
  sides[side].note = { state: "loading" };
  talk.append(make("p", question, { className: "said user" }), sides[side].box);
  talk.scrollTop = talk.scrollHeight;
  note(side);
}

async function listen(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) if (event.startsWith("data: ")) take(JSON.parse(event.slice(6)));
  }
}

function take(event) {
  if (event.id) { last.id = event.id; last.seed = event.seed; return; }
  const side = sides[event.side], talk = at("talk-" + event.side);
  side.note = { ...side.note, ...event };
  if (event.error) side.note.finish = "error";
  if (event.text) {
    const follows = talk.scrollTop + talk.clientHeight > talk.scrollHeight - 40;
    side.text += event.text;
    side.box.textContent = side.text;
    if (follows) talk.scrollTop = talk.scrollHeight;
  }
  note(event.side);
}

function note(side) {
  const of = sides[side].note, parts = [];
  at("note-" + side).classList.toggle("wrong", Boolean(of?.error));
  if (of?.error) parts.push(of.error);
  else if (of && !of.finish && !of.prompt_tokens) parts.push(say("loading"));
  else if (of) {
    parts.push(say("counts", { prompt: of.prompt_tokens ?? 0, answer: of.tokens ?? 0 }));
    if (of.finish === "length") parts.push(say("length"));
    if (of.finish === "cancelled") parts.push(say("stopped"));
    if (!of.finish) parts.push(say("writing"));
  }
  at("note-" + side).textContent = parts.join(" · ");
}

function finish(question) {
  running = null;
  busy(false);
  for (const side of used()) {
    sides[side].box?.classList.remove("writing");
    const answer = sides[side].text.trim();
    if (answer) sides[side].turns = [...sides[side].turns, { role: "user", content: question }, { role: "assistant", content: answer }];
    note(side);
  }
  if (last) last.done = true;
  voteNote();
  at("question").focus({ preventScroll: true });
}

function busy(on) {
  at("send").disabled = on;
  at("stop").disabled = !on;
}

function voteNote() {
  const why = !last || !last.done ? null : hindrance();
  const open = Boolean(last?.done && both() && !last.voted && !why);
  for (const side of [0, 1]) at("vote-" + side).disabled = !open;
  if (last?.voted) return;
  const values = { count: votes.count, file: votes.file };
  at("vote-note").textContent = !both() || !last?.done ? "" : why ? say(why) : `${say("can-vote", values)} (${say("seeded", { seed: last.seed })})`;
}

function hindrance() {
  if (!last.same) return "no-vote-history";
  if (sides.some((side) => !["stop", "length"].includes(side.note?.finish) || !side.text.trim())) return "no-vote-empty";
  return sides[0].text.trim() === sides[1].text.trim() ? "no-vote-same" : null;
}

async function vote(better) {
  if (at("vote-" + better).disabled) return;
  for (const side of [0, 1]) at("vote-" + side).disabled = true;
  await tried(async () => {
    const found = await ask("vote", { id: last.id, better });
    last.voted = true;
    votes.count = found.votes;
    sides[better].box.classList.add("best");
    sides[1 - better].turns = [...sides[better].turns]; // the next question is read after the same words by both
    at("vote-note").textContent = say("voted", { file: found.votes_file, count: found.votes });
  });
}
