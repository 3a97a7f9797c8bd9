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

async function once(path, body) {
  const headers = { "X-Forgery-Token": forgeryToken };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const reply = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (reply.ok) return reply;
  const error = await words(reply);
  throw Object.assign(new Refusal(reply.status, error.message, error.reason), { after: Number(reply.headers.get("Retry-After")) });
}

function passing(error) { return !(error instanceof Refusal) || error.status >= 500 || error.status === 429; }

// The reply, asked for again and again while the server cannot answer; other refusals are thrown.
async function patiently(path, body) {
  for (let attempt = 0; ; attempt++) {
    try {
      const reply = await once(path, body);
      if (attempt) away("");
      return reply;
    } catch (error) {
      if (!passing(error)) { if (attempt) away(""); throw error; }
      away(error instanceof Refusal ? error.message : "the server does not answer");
      await new Promise((done) => setTimeout(done, 1000 * (error.after || Math.min(2 ** attempt, 10))));
    }
  }
}

export async function ask(path, body) { return (await patiently(path, body)).json(); }

export async function picture(path) { return (await patiently(path)).blob(); }

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
