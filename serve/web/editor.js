"use strict";
// The page of serve/editor.py: reads /editor and /examples, sends the form to /edit, shows before and after.

const $ = (id) => document.getElementById(id);
const SCALES = ["guidance_scale", "image_guidance_scale"];
const PHRASES = ["make it winter", "turn the sky red", "make it a watercolor painting"];
let limits = { image_bytes: 20 * 2 ** 20, seed: 2 ** 32 - 1 };
let picture = null; // Blob
let edit = null; // Blob
let judged = null; // the edit that a thumb is about
let running = null; // AbortController of the request under way

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function put(image, blob) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
  return image.decode().then(() => {
    image.classList.toggle("pixels", image.naturalWidth <= 128);
    return [image.naturalWidth, image.naturalHeight];
  });
}

function forgetEdit() {
  edit = null;
  $("after").hidden = $("facts").hidden = true;
  $("after-empty").hidden = false;
}

async function choose(blob) {
  complain("");
  if (blob.size > limits.image_bytes) {
    complain(`The picture has ${blob.size.toLocaleString()} bytes; at most ${limits.image_bytes.toLocaleString()} are taken. Shrink it.`);
    return;
  }
  try {
    const [width, height] = await put($("before"), blob);
    for (const frame of document.querySelectorAll(".frame")) frame.style.setProperty("--aspect", `${width} / ${height}`);
    picture = blob;
    $("before-empty").hidden = true;
    forgetEdit();
  } catch {
    $("before").hidden = true;
    $("before-empty").hidden = false;
    picture = null;
    complain("This file is not a picture that the browser can read. Choose a PNG, JPEG, WebP, GIF, AVIF or BMP.");
  }
}

function unpress() {
  for (const button of $("examples").children) button.setAttribute("aria-pressed", "false");
}

function fromBase64(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

function offer(phrases) {
  $("phrases").replaceChildren(...phrases.map((phrase) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = phrase;
    button.addEventListener("click", () => { $("instruction").value = phrase; $("instruction").focus(); });
    return button;
  }));
}

async function showExamples() {
  const reply = await fetch("examples");
  const examples = reply.ok ? await reply.json() : [];
  $("examples").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map((example) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = example.caption;
    button.setAttribute("aria-pressed", "false");
    const image = document.createElement("img");
    image.src = `data:image/png;base64,${example.image}`;
    image.alt = example.caption;
    button.append(image);
    button.addEventListener("click", async () => {
      unpress();
      button.setAttribute("aria-pressed", "true");
      offer(example.instructions);
      $("instruction").value = example.instructions[0];
      await choose(fromBase64(example.image));
    });
    return button;
  }));
  if (examples.length) $("examples").firstChild.click();
}

function showScale(name) { $(`${name}_value`).textContent = Number($(name).value).toFixed(2).replace(/0$/, ""); }

async function start() {
  for (const name of SCALES) $(name).addEventListener("input", () => showScale(name));
  offer(PHRASES);
  try {
    const served = await (await fetch("editor")).json();
    limits = served.limits;
    const { resolution, instruction_suffix: suffix } = served.card;
    $("served").textContent = `Editor “${served.editor}”, ${resolution} pixels` + (suffix ? `, served with “${suffix.replace(/^[,\s]+/, "")}”` : "");
    for (const [name, value] of Object.entries(served.defaults)) $(name).value = value;
    $("num_inference_steps").max = limits.num_inference_steps;
    $("file-limit").textContent = `PNG, JPEG, WebP, GIF, AVIF or BMP, at most ${limits.image_bytes / 2 ** 20} MB`;
    $("thumbs").hidden = !served.feedback;
    if (served.fit === "crop") document.body.classList.add("crop");
    SCALES.forEach(showScale);
    await showExamples();
  } catch (error) {
    complain(`The editor does not answer (${error.message}). Is the server still running?`);
  }
}

function request() {
  const form = new FormData();
  form.append("image", picture, "picture");
  form.append("instruction", $("instruction").value);
  for (const name of [...SCALES, "num_inference_steps", "seed"]) if ($(name).value !== "") form.append(name, $(name).value);
  return form;
}

async function words(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `the server answered ${reply.status} ${reply.statusText}`;
  }
}

// A thumb gives both pictures to whoever runs the editor; it is asked for once an edit, and may be changed.
async function think(liked) {
  const { asked, source, edited } = judged;
  const form = new FormData();
  form.append("image", source, "picture");
  form.append("edited", edited, "edit");
  form.append("instruction", asked.instruction);
  form.append("liked", liked);
  form.append("key", judged.key);
  form.append("seed", asked.edits[0].seed);
  for (const name of [...SCALES, "num_inference_steps"]) form.append(name, asked[name]);
  try {
    const reply = await fetch("feedback", { method: "POST", body: form });
    if (!reply.ok) throw new Error(await words(reply));
    $("like").setAttribute("aria-pressed", String(liked));
    $("dislike").setAttribute("aria-pressed", String(!liked));
    say("Thank you: it is stored with both pictures.");
  } catch (error) {
    complain(error.message);
  }
}

function show(asked) {
  judged = { asked, source: picture, edited: edit, key: [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("") };
  for (const id of ["like", "dislike"]) $(id).setAttribute("aria-pressed", "false");
  $("after-empty").hidden = true;
  $("facts").hidden = false;
  $("download").href = $("after").src;
  $("download").download = `edit-${asked.edits[0].seed}.png`;
  $("fact-line").textContent = `“${asked.instruction}” · seed ${asked.edits[0].seed} · ${asked.seconds.toFixed(1)} s`;
}

async function run() {
  if (running) { running.abort(); return; }
  complain("");
  if (!picture) { complain("Choose a picture first."); $("file").focus(); return; }
  if (!$("form").reportValidity()) return;
  running = new AbortController();
  $("go").textContent = "Stop";
  $("busy").hidden = false;
  const began = performance.now();
  const tick = () => say(`Editing… ${((performance.now() - began) / 1000).toFixed(0)} s`);
  tick();
  const clock = setInterval(tick, 1000);
  try {
    const reply = await fetch("edit", { method: "POST", body: request(), headers: { Accept: "application/json" }, signal: running.signal });
    if (!reply.ok) throw new Error(await words(reply));
    const asked = await reply.json();
    edit = fromBase64(asked.edits[0].image);
    await put($("after"), edit);
    show(asked);
    say("");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : "");
    if (error.name !== "AbortError") complain(error.message);
  } finally {
    clearInterval(clock);
    running = null;
    $("busy").hidden = true;
    $("go").innerHTML = "Edit <kbd>Enter ↵</kbd>";
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
$("instruction").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); run(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.defaultPrevented) run();
});
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) { unpress(); offer(PHRASES); choose(file); }
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) { unpress(); choose(file); }
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) { unpress(); choose(file); }
});
$("like").addEventListener("click", () => think(true));
$("dislike").addEventListener("click", () => think(false));
$("again").addEventListener("click", () => { $("seed").value = Math.floor(Math.random() * limits.seed); run(); });
$("onwards").addEventListener("click", () => { if (edit) { unpress(); choose(edit); $("instruction").select(); } });
start();
