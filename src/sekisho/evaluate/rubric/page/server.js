// Asks the command that serves this page. The link's token is in the fragment, which a browser sends to nobody; it is
// changed for a session, once, and leaves the address bar. The session is kept for this origin and sent in a header.

const SESSION = "session";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = { authorization: `Bearer ${localStorage.getItem(SESSION)}` };
  const options = body === undefined ? { headers } : {
    method: "POST",
    headers: { ...headers, "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Refused(response.status, answer.error);
  return answer;
}

export async function enter() {
  const token = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  if (token) localStorage.setItem(SESSION, (await ask("api/open", { token })).session);
}

export const view = () => ask("api/view");
export const rate = (round, task, score) => ask("api/rate", { round, task, score });
export const handIn = (round) => ask("api/hand-in", { round });
export const remember = (memo) => ask("api/memo", { memo });
export const begin = () => ask("api/begin", {});
