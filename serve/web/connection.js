// Asking the server: with the session's forgery token, again where the database or the network is away.

export class Refusal extends Error {
  constructor(status, message, reason) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

let forgeryToken = "";
let away = () => {};

export function whenAway(tell) { away = tell; }

async function words(reply) {
  try {
    return (await reply.json()).error;
  } catch {
    return { message: `the server answered ${reply.status} ${reply.statusText}` };
  }
}

const PATIENCE_MS = 60_000; // for one reply, to its last byte

async function once(path, body, read) {
  const headers = { "X-Forgery-Token": forgeryToken };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined ? { method: "GET" } : { method: "POST", body: JSON.stringify(body) };
  const reply = await fetch(path, { ...sent, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  if (reply.ok) return await read(reply);
  const error = await words(reply);
  throw Object.assign(new Refusal(reply.status, error.message, error.reason), { after: Number(reply.headers.get("Retry-After")) });
}

function passing(error) { return !(error instanceof Refusal) || error.status >= 500 || error.status === 429; }

// What is read of the reply, asked for again and again while the server cannot answer; other refusals are thrown.
async function patiently(path, body, read) {
  for (let attempt = 0; ; attempt++) {
    try {
      const found = await once(path, body, read);
      if (attempt) away("");
      return found;
    } catch (error) {
      if (!passing(error)) { if (attempt) away(""); throw error; }
      away(error instanceof Refusal ? error.message : "the server does not answer");
      await new Promise((done) => setTimeout(done, 1000 * (error.after || Math.min(2 ** attempt, 10))));
    }
  }
}

export function ask(path, body) { return patiently(path, body, (reply) => reply.json()); }

export function picture(path) { return patiently(path, undefined, (reply) => reply.blob()); }

// Who is signed in: by the token in the address, which is then taken out of it, or by the session that the browser has.
export async function signIn() {
  const token = location.hash.slice(1);
  if (token) history.replaceState(null, "", location.pathname);
  let me;
  try {
    me = token ? await ask("sign-in", { token }) : await ask("api/me");
  } catch (error) {
    if (!token || error.status !== 401) throw error;
    me = await ask("api/me").catch(() => { throw error; }); // an old link in a browser that is signed in
  }
  forgeryToken = me.forgery_token;
  return me;
}
