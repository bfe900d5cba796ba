// How one message looks: a question, or an answer with its thinking, its text, its figures and its trouble.

import { renderMarkdown } from "./markdown.js";
import { text } from "./messages.js";

function element(tag, className = "", content = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content) node.textContent = content;
  return node;
}

export function button(className, content, action) {
  const node = element("button", className, content);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
}

// The clipboard interface exists only on https and on this machine itself; elsewhere the old way still works.
async function toClipboard(content) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(content);
    return;
  }
  const before = document.activeElement;
  const field = element("textarea", "unseen");
  field.value = content;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus({ preventScroll: true });
  if (!done) throw new Error("copy was refused");
}

function copyButton(label, content, announce) {
  const node = button("quiet small", label, async () => {
    let outcome = text("copied");
    try {
      await toClipboard(content());
    } catch (error) {
      console.warn("copy failed", error);
      outcome = text("copyFailed");
    }
    node.textContent = outcome;
    announce(outcome);
    setTimeout(() => (node.textContent = label), 1500);
  });
  return node;
}

export function questionNode(message, actions) {
  const node = element("article", "message question");
  node.setAttribute("aria-label", text("you"));
  const tools = element("div", "actions");
  tools.append(copyButton(text("copy"), () => message.text, actions.announce));
  if (actions.edit) tools.append(button("quiet small", text("edit"), actions.edit));
  node.append(element("div", "said", message.text), tools);
  return node;
}

// An answer that may still grow: `update` shows what the message holds now.
export class AnswerView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.node = element("article", "message answer");
    this.node.setAttribute("aria-label", text("assistant"));
    this.thinking = element("details", "thinking");
    this.thinkingTitle = element("summary");
    this.thinkingText = element("div", "thought");
    this.thinking.append(this.thinkingTitle, this.thinkingText);
    this.waiting = element("p", "waiting", text("waiting"));
    this.body = element("div", "prose");
    this.trouble = element("div");
    this.foot = element("div", "foot");
    this.node.append(
      element("p", "name", message.model), this.thinking, this.waiting, this.body, this.trouble, this.foot,
    );
    this.timer = 0;
    this.finished = false;
    this.update();
  }

  update() {
    const { message } = this;
    const going = message.going === true;
    this.node.setAttribute("aria-busy", String(going));
    this.node.classList.toggle("going", going);
    this.thinking.hidden = !message.reasoning;
    this.thinkingTitle.textContent = text(going && !message.text ? "thinking" : "thought");
    if (this.thinkingText.textContent !== message.reasoning) this.thinkingText.textContent = message.reasoning;
    this.waiting.hidden = !going || Boolean(message.text || message.reasoning);
    renderMarkdown(this.body, message.text, (language, code) => this.codeHead(language, code));
    if (!going && !this.finished) this.finish();
  }

  codeHead(language, code) {
    const head = element("figcaption");
    head.append(element("span", "", language), copyButton(text("copyCode"), () => code, this.actions.announce));
    return head;
  }

  finish() {
    const { message, actions } = this;
    this.finished = true;
    const foot = element("div", "foot");
    const tools = element("div", "actions");
    if (message.text) tools.append(copyButton(text("copy"), () => message.text, actions.announce));
    if (actions.again && !message.error) tools.append(button("quiet small again", text("regenerate"), actions.again));
    foot.append(tools, element("p", "figures", figures(message)));
    this.foot.replaceWith(foot);
    this.foot = foot;
    const trouble = message.error ? this.troubleNode(message.error) : element("div");
    this.trouble.replaceWith(trouble);
    this.trouble = trouble;
  }

  troubleNode(error) {
    const node = element("div", "trouble");
    node.setAttribute("role", "alert");
    node.append(element("strong", "", text(`err_${error.kind}`)), element("p", "", text(`err_${error.kind}_do`)));
    if (error.message) {
      const details = element("details");
      details.append(element("summary", "", text("details")), element("p", "server-words", error.message));
      node.append(details);
    }
    if (error.id) {
      const line = element("p", "error-id", `${text("errorId")}: `);
      line.append(element("code", "", error.id));
      node.append(line);
    }
    const tools = element("div", "actions");
    if (error.kind === "unauthenticated") tools.append(button("primary", text("changeKey"), this.actions.changeKey));
    else if (this.actions.again) tools.append(this.retryButton(error));
    node.append(tools);
    return node;
  }

  // Counts down to the moment the server named, then can be pressed.
  retryButton(error) {
    const node = button("primary again", "", () => this.actions.again());
    const show = () => {
      const left = Math.ceil(((error.retryAt || 0) - Date.now()) / 1000);
      node.disabled = left > 0;
      node.textContent = left > 0 ? text("retryIn", { seconds: left }) : text("retry");
      if (left <= 0) clearInterval(this.timer);
    };
    show();
    if (node.disabled) this.timer = setInterval(show, 250);
    return node;
  }

  close() {
    clearInterval(this.timer);
  }
}

function figures(message) {
  const parts = [];
  if (message.stopped) parts.push(text("stopped"));
  if (message.finish === "length") parts.push(text("lengthLimit"));
  if (message.finish === "content_filter") parts.push(text("filtered"));
  if (message.usage) {
    parts.push(text("tokensIn", { count: message.usage.prompt_tokens }));
    parts.push(text("tokensOut", { count: message.usage.completion_tokens }));
  }
  if (message.tokensPerS) parts.push(text("speed", { speed: message.tokensPerS.toFixed(message.tokensPerS < 100 ? 1 : 0) }));
  if (message.firstMs) parts.push(text("firstToken", { seconds: (message.firstMs / 1000).toFixed(2) }));
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // lines break between figures only
}
