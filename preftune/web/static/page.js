// The parts of the page, its language, and the one way to ask the server. Texts are set by textContent alone.
import { WORDS } from "./words.js";
import { openChat } from "./chat.js";
import { openRuns, showRun } from "./runs.js";
import { openData } from "./data.js";
import { openTrain } from "./train.js";

const TOKEN = document.querySelector("meta[name=preftune-token]").content;
export const at = (id) => document.getElementById(id);
const PARTS = ["chat", "runs", "data", "train"];
const OPEN = { chat: openChat, runs: openRuns, data: openData, train: openTrain };
let language = "en";

export function say(word, values = {}) {
  const text = WORDS[language][word] ?? WORDS.en[word] ?? word;
  return text.replace(/\{(\w+)\}/g, (all, name) => (name in values ? String(values[name]) : all));
}

export function make(tag, text, properties = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  }
  return element;
}

export function fillSelect(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", text, { value })));
  if (chosen !== undefined && entries.some(([value]) => value === chosen)) select.value = chosen;
}

export class Refused extends Error {}

export async function request(path, body, more = {}) {
  let reply;
  try {
    reply = await fetch("/api/" + path, body === undefined ? more : {
      method: "POST", body: JSON.stringify(body), ...more,
      headers: { "content-type": "application/json", "x-preftune-token": TOKEN },
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused(say("away"));
  }
  if (!reply.ok) {
    let reason = `${reply.status}`;
    try { reason = (await reply.json()).error ?? reason; } catch { /* not ours: the number has to do */ }
    throw new Refused(reason);
  }
  return reply;
}

export const ask = async (path, body) => (await request(path, body)).json();

export function problem(error) {
  if (error && !(error instanceof Refused)) console.error(error);
  at("problem").hidden = !error;
  at("problem").textContent = error ? error.message : "";
}

// Runs `work` and shows what went wrong, in place of a promise that nobody waits for.
export async function tried(work) {
  try { problem(null); return await work(); } catch (error) { problem(error); return undefined; }
}

export function age(seconds) {
  const [n, word] = seconds < 90 ? [seconds, "seconds"] : seconds < 5400 ? [seconds / 60, "minutes"]
    : seconds < 129600 ? [seconds / 3600, "hours"] : [seconds / 86400, "days"];
  return say(word, { n: Math.round(n) });
}

export function number(value) {
  if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 100000)) return String(+value.toPrecision(4));
  return value.toExponential(2);
}

export const visible = (part) => !at(part).hidden && document.visibilityState === "visible";

export function show(part, run) {
  problem(null);
  for (const name of PARTS) {
    const on = name === part, tab = at("tab-" + name);
    at(name).hidden = !on;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
  }
  if (location.hash !== "#" + part) history.replaceState(null, "", location.search + "#" + part);
  tried(async () => { await OPEN[part](); if (run) await showRun(run); });
}

function speak(wanted) {
  language = wanted;
  document.documentElement.lang = wanted === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const element of document.querySelectorAll("[data-keys]")) element.title = element.dataset.keys;
  at("language").textContent = say("other");
  document.dispatchEvent(new Event("language"));
}

function begin() {
  const asked = new URLSearchParams(location.search).get("lang") ?? localStorage.getItem("language") ?? navigator.language;
  speak(asked.startsWith("zh") ? "zh" : "en");
  at("language").onclick = () => {
    speak(language === "zh" ? "en" : "zh");
    localStorage.setItem("language", language);
  };
  for (const name of PARTS) at("tab-" + name).onclick = () => show(name);
  at("tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const here = PARTS.findIndex((name) => at("tab-" + name) === document.activeElement);
    if (!step || here < 0) return;
    const next = PARTS[(here + step + PARTS.length) % PARTS.length];
    show(next);
    at("tab-" + next).focus();
  };
  const wanted = location.hash.slice(1);
  show(PARTS.includes(wanted) ? wanted : "chat");
}

begin();
