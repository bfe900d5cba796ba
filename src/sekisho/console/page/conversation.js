// The conversation: what was said, what is sent, and how an answer grows. Knows nothing of the page.

import { ApiError, streamChat } from "./api.js";
import { forgetState, loadState, saveState } from "./store.js";

export class Conversation {
  constructor() {
    this.state = loadState();
    this.running = null;
    for (const message of this.state.messages) {
      if (!message.going) continue;
      message.going = false; // the page was left while this answer came in
      message.stopped = true;
    }
  }

  get messages() {
    return this.state.messages;
  }

  get lastQuestion() {
    return this.messages.findLastIndex((message) => message.role === "user");
  }

  save() {
    saveState(this.state);
  }

  clear() {
    this.stop();
    this.state.messages = [];
    this.save();
  }

  forget() {
    this.clear();
    forgetState();
    this.state = loadState();
  }

  stop() {
    this.running?.abort();
    this.running = null;
  }

  // Adds a question in place of everything from `index` on, and an empty answer to it.
  ask(question, index = this.messages.length) {
    this.messages.splice(index, Infinity, { role: "user", text: question });
    return this.expect();
  }

  // Throws the answer to the last question away and expects a new one.
  again() {
    this.messages.splice(this.lastQuestion + 1);
    return this.expect();
  }

  expect() {
    const answer = { role: "assistant", text: "", reasoning: "", model: this.state.model, going: true };
    this.messages.push(answer);
    return answer;
  }

  // What the server gets. An answer that never came leaves two questions in a row: they are sent as one, because many
  // chat templates insist on turns that alternate.
  request() {
    const { model, system, temperature, maxTokens } = this.state;
    const messages = system.trim() ? [{ role: "system", content: system }] : [];
    for (const { role, text, going } of this.messages) {
      if (going || !text) continue;
      if (messages.at(-1)?.role === role) messages.at(-1).content += `\n\n${text}`;
      else messages.push({ role, content: text });
    }
    const body = { model, messages };
    if (temperature !== "") body.temperature = Number(temperature);
    if (maxTokens !== "") body.max_tokens = Number(maxTokens);
    return body;
  }

  // Lets `answer` grow until it is complete, stopped or broken; `changed` is called after every change.
  async run(key, answer, changed) {
    const control = new AbortController();
    this.running = control;
    const clock = { asked: performance.now(), first: 0, last: 0 };
    try {
      for await (const chunk of streamChat(key, this.request(), control.signal)) {
        absorb(answer, chunk, clock);
        changed();
      }
      if (!answer.finish) throw new ApiError("cut");
    } catch (error) {
      if (control.signal.aborted) answer.stopped = true;
      else answer.error = describe(error);
    } finally {
      if (this.running === control) this.running = null;
      answer.going = false;
      measure(answer, clock);
      this.save();
      changed();
    }
  }
}

const SHORTEST_WINDOW_MS = 100;

function absorb(answer, chunk, clock) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const reasoning = delta.reasoning_content ?? delta.reasoning ?? "";
  const content = delta.content ?? delta.refusal ?? "";
  if (reasoning || content) {
    clock.last = performance.now();
    clock.first ||= clock.last;
  }
  answer.reasoning += reasoning;
  answer.text += content;
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.usage) answer.usage = chunk.usage;
}

function measure(answer, clock) {
  if (!clock.first) return;
  answer.firstMs = clock.first - clock.asked;
  const tokens = answer.usage?.completion_tokens ?? 0;
  const windowMs = clock.last - clock.first;
  // Tokens that came in one read tell when they were delivered, not how fast they were made: no figure then.
  if (tokens > 1 && windowMs >= SHORTEST_WINDOW_MS) answer.tokensPerS = ((tokens - 1) * 1000) / windowMs;
}

// Plain data, so that it survives a reload.
export function describe(error) {
  if (!(error instanceof ApiError)) console.error(error);
  const known = error instanceof ApiError ? error : new ApiError("server", { message: String(error) });
  const retryAt = known.retryAfterS ? Date.now() + known.retryAfterS * 1000 : 0;
  return { kind: known.kind, message: known.message, id: known.id, retryAt };
}
