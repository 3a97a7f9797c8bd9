// The ranking page: shows a task, keeps the next one ready, stores an answer before it moves on.

import { ask, picture, signIn, whenAway } from "./connection.js";
import { Comparison } from "./comparison.js";
import { Ranking } from "./ranking.js";
import { endZoom, isZoomed, moveZoom, toggleZoom } from "./zoom.js";

const $ = (id) => document.getElementById(id);
const PENDING = "hive_ray.pending"; // an answer that is on its way, kept by the browser until the server has it
const POLL_MS = 15000;
const REASONS = ["The instruction makes no sense here", "I cannot tell", "A picture is damaged", "I do not want to see this"];
const HOW = {
  rank: "Put the edits in order, best first: the best follows the instruction and keeps the rest of the picture as it was.",
  study: "Say which of the two edits follows the instruction better, and which keeps the rest of the picture better.",
};
const KEYS = {
  rank: [["1 to 9", "choose the next best edit; again to take it out"], ["Shift + 1 to 9, or T first", "choose it as a tie with the last"], ["Backspace", "take back the last choice"], ["S", "all the same"], ["N", "none is acceptable"]],
  study: [["1, 2, 3", "left, about the same, right"], ["Backspace", "take back the last choice"]],
  both: [["Enter", "store, and go on"], ["U", "back to your last answer"], ["X", "skip"], ["Z, arrows, wheel", "zoom on all pictures at the same place"], ["Esc", "start over"]],
};

let me = null;
let current = null; // {task, source, edits (object addresses), choice, key, seconds, since}
let coming = null; // a promise of the next one
let busy = false;

function setBusy(on) { busy = on; $("task").setAttribute("aria-busy", String(on)); }

// --- Tasks ---

async function loaded(task) {
  if (!task) return null;
  const images = await Promise.all([task.source, ...task.edits].map(picture));
  const [source, ...edits] = images.map((image) => URL.createObjectURL(image));
  await Promise.all([source, ...edits].map(decoded));
  return { task, source, edits, key: crypto.randomUUID?.() ?? randomKey(), seconds: 0, since: null };
}

function decoded(address) {
  const image = new Image();
  image.src = address;
  return image.decode().catch(() => {});
}

function randomKey() { return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join(""); }

async function fetchNext(holding) { return loaded((await ask("api/next", { holding })).task); }

function prefetch() {
  coming = fetchNext(current ? [current.task.assignment] : []).catch((error) => error);
}

function forget(shown) {
  if (shown) for (const address of [shown.source, ...shown.edits]) URL.revokeObjectURL(address);
}

async function goOn() {
  if (!coming) prefetch();
  const next = await coming;
  coming = null;
  if (next instanceof Error) throw next;
  if (!next) {
    tell("Nothing is left for you now", "Thank you. New tasks appear here by themselves.");
    setTimeout(() => { if (!current) guarded(goOn); }, POLL_MS);
    return;
  }
  show(next);
  prefetch();
}

function tell(title, words) {
  forget(current);
  current = null;
  $("task").hidden = $("actions").hidden = true;
  $("message").hidden = false;
  $("instruction").textContent = "";
  $("message-title").textContent = title;
  $("message-words").textContent = words;
}

function show(next) {
  if (current !== next) forget(current);
  current = next;
  const { task } = next;
  const isStudy = task.kind === "study";
  $("message").hidden = true;
  $("task").hidden = $("actions").hidden = false;
  $("rank-actions").hidden = isStudy;
  $("study-actions").hidden = !isStudy;
  $("instruction").textContent = `“${task.instruction}”`;
  put($("source-picture"), next.source);
  const cards = next.edits.map((address, place) => card(address, place, isStudy));
  $("edits").replaceChildren(...cards);
  arrange();
  const said = task.answer && !("skipped" in task.answer) ? task.answer : null;
  next.choice = isStudy ? new Comparison(changed, said ?? {}) : said ? Ranking.from(said, changed) : new Ranking(cards.length, changed);
  next.since = document.hidden ? null : performance.now();
  endZoom();
  changed();
  if (task.answer) $("status").textContent = "skipped" in task.answer ? `You skipped this: ${task.answer.skipped}.` : "This is what you said. Change it and store, or store it again.";
  $("edits").firstChild.focus({ preventScroll: true });
}

// So many edits side by side that square ones become as large as they can.
function arrange() {
  const { clientWidth: width, clientHeight: height, children: { length: count } } = $("edits");
  const side = (across) => Math.min(width / across - 30, height / Math.ceil(count / across) - 70);
  const choices = [...Array(count).keys()].map((index) => index + 1);
  $("edits").style.setProperty("--across", choices.reduce((best, across) => (side(across) > side(best) + 1 ? across : best)));
}
addEventListener("resize", () => { if (current) arrange(); });

function card(address, place, isStudy) {
  const button = document.createElement(isStudy ? "figure" : "button");
  if (!isStudy) button.type = "button";
  else button.tabIndex = -1;
  button.className = "edit";
  const label = document.createElement("span");
  label.className = "label";
  const name = document.createElement("span");
  name.textContent = isStudy ? ["Left", "Right"][place] : `${place + 1}`;
  label.append(name, Object.assign(document.createElement("span"), { className: "place" }));
  const frame = document.createElement("span");
  frame.className = "frame";
  const image = document.createElement("img");
  image.alt = isStudy ? `The ${["left", "right"][place]} edit` : "";
  put(image, address);
  frame.append(image);
  button.append(label, frame);
  if (!isStudy) button.addEventListener("click", (event) => { if (!busy) current.choice.choose(place, event.shiftKey || undefined); });
  return button;
}

function put(image, address) {
  image.src = address;
  image.decode().then(() => image.classList.toggle("pixels", image.naturalWidth <= 128)).catch(() => {});
}

function changed() {
  current.choice.show([...$("edits").children]);
  $("status").textContent = current.choice.words;
  $("store").setAttribute("aria-disabled", String(!current.choice.answer));
  $("undo").setAttribute("aria-disabled", String(!me.done && !current.task.answer));
}

// --- Answers ---

async function store(answer) {
  if (busy || !current || !answer) return;
  setBusy(true);
  const { task, key } = current;
  const pending = { assignment: task.assignment, key, answer, seconds: current.seconds + onScreen(), corrects: task.corrects };
  try {
    await send(pending);
    await goOn();
  } finally {
    setBusy(false);
  }
}

// Kept in the browser until the server says that it is stored; sent under one key, so that it is stored once.
async function send(pending) {
  localStorage.setItem(PENDING, JSON.stringify({ name: me.name, pending }));
  let note = "";
  try {
    const stored = await ask("api/answers", pending);
    me.done = stored.done;
  } catch (error) {
    if (error.status !== 409 && error.status !== 404 && error.status !== 400) throw error;
    note = error.message;
  }
  localStorage.removeItem(PENDING);
  $("done").textContent = `${me.done.toLocaleString()} done${note ? ` · ${note}` : ""}`;
}

async function sendWhatIsLeft() {
  const kept = JSON.parse(localStorage.getItem(PENDING) ?? "null");
  if (kept?.name === me.name) await send(kept.pending);
}

async function undo() {
  if (busy) return;
  setBusy(true);
  try {
    const before = current?.task.answer ? current.task.assignment : null;
    const back = await loaded((await ask("api/undo", { before })).task);
    if (!back) { $("status").textContent = "There is no earlier answer."; return; }
    const waiting = current && !current.task.answer ? current : null; // goes on after the correction
    if (waiting) {
      coming?.then((next) => forget(next?.task && next)); // its lease stays: the server gives it again
      coming = Promise.resolve(waiting);
      current = null;
    }
    show(back);
  } finally {
    setBusy(false);
  }
}

function onScreen() { return current?.since === null || !current ? 0 : (performance.now() - current.since) / 1000; }

document.addEventListener("visibilitychange", () => {
  if (!current) return;
  if (document.hidden) { current.seconds += onScreen(); current.since = null; } else current.since = performance.now();
});

// --- What a person does ---

function skip() { $("reason").value = ""; $("skipping").showModal(); }

function skipFor(reason) {
  if (!reason.trim()) { $("reason").focus(); return; }
  $("skipping").close();
  guarded(() => store({ skipped: reason.trim() }));
}

function startOver() { current.choice.clear(); changed(); }

const ACTIONS = {
  undo: () => guarded(undo), help: () => $("helping").showModal(), skip,
  tie: () => current.choice.toggleTie?.(), same: () => current.choice.allTheSame?.(), none: () => current.choice.toggleNone?.(),
  clear: startOver, store: () => guarded(() => store(current.choice.answer)),
};
const LETTERS = { u: "undo", h: "help", "?": "help", x: "skip", t: "tie", s: "same", n: "none", Enter: "store" };

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((event.ctrlKey || event.metaKey) && letter !== "z") return;
  if (letter === "h" || letter === "?") ACTIONS.help();
  else if (letter === "u" || (event.ctrlKey || event.metaKey)) ACTIONS.undo();
  else if (!current || busy) return;
  else if (digit) current.choice.choose(Number(digit[1]) - 1, event.shiftKey || undefined);
  else if (letter === "z") toggleZoom();
  else if (letter === "Backspace") current.choice.takeBack();
  else if (letter === "Escape") { if (!endZoom()) startOver(); }
  else if (letter.startsWith("Arrow") && isZoomed()) moveZoom(letter);
  else if (letter === "Enter" && event.target.matches?.(current.choice.answer ? "#actions button, header button" : "button")) return; // the button's own
  else if (letter in LETTERS) { if (!event.repeat) ACTIONS[LETTERS[letter]](); } else return;
  event.preventDefault();
});
for (const [name, act] of Object.entries(ACTIONS)) $(name).addEventListener("click", () => { if (current || name === "help" || name === "undo") act(); });

REASONS.forEach((reason, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(Object.assign(document.createElement("kbd"), { textContent: index + 1 }), ` ${reason}`);
  button.addEventListener("click", () => skipFor(reason));
  $("reasons").append(button);
});
$("skipping").addEventListener("keydown", (event) => {
  const index = Number(event.key) - 1;
  if (event.target === $("reason") || !(index in REASONS)) return;
  event.preventDefault();
  skipFor(REASONS[index]);
});
$("skip-form").addEventListener("submit", (event) => { event.preventDefault(); skipFor($("reason").value); });
$("skip-cancel").addEventListener("click", () => $("skipping").close());
$("help-close").addEventListener("click", () => $("helping").close());

// --- The start ---

whenAway((words) => {
  $("away").hidden = !words;
  const kept = localStorage.getItem(PENDING) ? " Your answer is kept in this browser and is sent as soon as it can be." : "";
  $("away").textContent = words ? `The server cannot be used now: ${words}.${kept}` : "";
});

async function guarded(act) {
  try {
    await act();
  } catch (error) {
    if (error.status === 401) tell("You are not signed in", error.message);
    else if (error.reason === "paused") tell("Your work is paused", error.message);
    else tell("Something went wrong", `${error.message}. Load the page again; what you stored is safe.`);
  }
}

guarded(async () => {
  me = await signIn();
  document.title = me.mode === "study" ? "Compare edits" : "Rank edits";
  $("how").textContent = HOW[me.mode];
  $("keys").replaceChildren(...[...KEYS[me.mode], ...KEYS.both].map(([key, words]) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("td"), { textContent: key }), Object.assign(document.createElement("td"), { textContent: words }));
    return row;
  }));
  $("done").textContent = `${me.done.toLocaleString()} done`;
  await sendWhatIsLeft();
  await goOn();
  setInterval(async () => {
    if (document.hidden || !current) return;
    const next = await coming;
    const held = [current, next].flatMap((one) => (one?.task ? [one.task.assignment] : []));
    ask("api/renew", { assignments: held }).catch(() => {});
  }, 1000 * me.lease_s / 3);
});
