// The administrator's page: people, links, files.

import { ask, signIn, whenAway } from "./connection.js";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 10000;

whenAway((words) => {
  $("away").hidden = !words;
  $("away").textContent = words ? `The server cannot be used now: ${words}.` : "";
});

function cell(words, kind = "td") { return Object.assign(document.createElement(kind), { textContent: words }); }

function line(person) {
  const row = document.createElement("tr");
  const seconds = person.median_seconds === null ? "–" : person.median_seconds.toFixed(1);
  const seen = person.last_at === null ? "–" : new Date(1000 * person.last_at).toLocaleString();
  const name = cell(person.name, "th");
  name.scope = "row";
  const remark = cell(person.flag || (person.state === "paused" ? "paused" : person.role === "administrator" ? "administrator" : ""));
  remark.className = "left";
  const change = document.createElement("td");
  if (person.role === "annotator") {
    const paused = person.state === "paused";
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: paused ? "Let go on" : "Pause" });
    button.setAttribute("aria-label", `${button.textContent}: ${person.name}`);
    button.addEventListener("click", () => act(async () => { await ask("api/admin/pause", { person: person.id, paused: !paused }); await refresh(); }));
    change.append(button);
  }
  row.append(name, cell(person.answers), cell(person.skipped), cell(seconds), cell(`${person.known_right} of ${person.known_answers}`), cell(seen), remark, change);
  return row;
}

async function refresh() {
  const { people, progress } = await ask("api/admin/people");
  $("summary").textContent = `${progress.answers.toLocaleString()} of ${progress.wanted.toLocaleString()} answers, ${progress.finished.toLocaleString()} of ${progress.tasks.toLocaleString()} tasks finished, ${progress.leased} in work, ${progress.broken.length} cannot be shown`;
  $("bar").value = progress.wanted ? progress.answers / progress.wanted : 0;
  $("people").replaceChildren(...people.map(line));
}

async function act(what) {
  try { await what(); } catch (error) { $("away").hidden = false; $("away").textContent = error.message; }
}

$("invite").addEventListener("submit", (event) => {
  event.preventDefault();
  act(async () => {
    const { link } = await ask("api/admin/invite", { name: $("name").value.trim(), role: $("role").value });
    $("link").hidden = false;
    $("link").textContent = new URL(link, new URL(".", location.href)).href;
    $("away").hidden = true;
    await refresh();
  });
});
$("without").addEventListener("change", () => {
  for (const link of document.querySelectorAll("a.file")) link.search = $("without").checked ? "leave_out_flagged=true" : "";
});
$("file").addEventListener("change", () => act(async () => {
  const [file] = $("file").files;
  if (!file) return;
  $("imported").textContent = "Reading…";
  try {
    const { imported, known, left_out, reasons } = await ask("admin/label-studio", JSON.parse(await file.text()));
    const left = left_out ? ` ${left_out} are left out, such as: ${reasons.join("; ")}.` : "";
    $("imported").textContent = `${imported} answers taken in, ${known} were here already.${left}`;
  } catch (error) {
    $("imported").textContent = error instanceof SyntaxError ? "This file is not JSON." : error.message;
  }
  $("file").value = "";
  await refresh();
}));

act(async () => {
  await signIn();
  await refresh();
  $("content").hidden = false;
  setInterval(() => { if (!document.hidden) act(refresh); }, REFRESH_MS);
});
