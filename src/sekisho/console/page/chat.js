// The page: shows the gate or the room, and turns keys and clicks into what the conversation does.

import { listModels, validKey } from "./api.js";
import { AnswerView, button, questionNode } from "./bubble.js";
import { Conversation, describe } from "./conversation.js";
import { applyTexts, currentLanguage, preferredLanguage, setLanguage, text } from "./messages.js";
import { forgetKey, loadKey, loadLanguage, saveKey, saveLanguage } from "./store.js";

const $ = (id) => document.getElementById(id);
const talk = new Conversation();
const views = new Map(); // answer -> AnswerView
const touch = matchMedia("(pointer: coarse)");

let key = "";
let models = [];
let problem = null; // what the gate complains about; kept so that it can change language
let editing = false;
let composing = false;
let atEnd = true;
let drawing = false;

function announce(words) {
  $("status").textContent = words;
}

// ---- gate ----

function showGate(error = null) {
  problem = error;
  $("gate").hidden = false;
  for (const id of ["room", "model-label", "new-chat", "open-settings"]) $(id).hidden = true;
  showProblem();
  $("key").focus();
}

function showProblem() {
  const line = $("key-problem");
  line.textContent = problem ? `${text(`err_${problem.kind}`)} ${problem.kind === "bad_key" ? "" : text(`err_${problem.kind}_do`)}` : "";
  if (problem?.id) line.append(document.createElement("br"), `${text("errorId")}: ${problem.id}`);
  $("key").setAttribute("aria-invalid", String(Boolean(problem)));
}

async function enter(candidate, remember) {
  const submit = $("key-form").querySelector("button");
  if (submit.disabled) return;
  submit.disabled = true;
  announce(text("checking"));
  try {
    models = await listModels(candidate);
    if (models.length === 0) throw Object.assign(new Error("no models"), { known: { kind: "no_models" } });
    key = candidate;
    if (remember !== null) saveKey(candidate, remember);
    $("key").value = "";
    showRoom();
  } catch (error) {
    $("key").value = candidate;
    showGate(error.known ?? describe(error));
  } finally {
    submit.disabled = false;
    announce("");
  }
}

function onKeyForm(event) {
  event.preventDefault();
  const candidate = $("key").value.trim();
  if (!validKey(candidate)) showGate({ kind: "bad_key" });
  else enter(candidate, $("remember").checked);
}

// ---- room ----

function showRoom() {
  problem = null;
  $("gate").hidden = true;
  for (const id of ["room", "model-label", "new-chat", "open-settings"]) $(id).hidden = false;
  if (!models.includes(talk.state.model)) talk.state.model = models[0];
  $("model").replaceChildren(...models.map((name) => new Option(name, name, false, name === talk.state.model)));
  showAll();
  focusComposer();
}

function showAll() {
  for (const view of views.values()) view.close();
  views.clear();
  $("log").replaceChildren();
  $("welcome").hidden = talk.messages.length > 0;
  const names = ["suggestion1", "suggestion2", "suggestion3", "suggestion4"];
  $("suggestions").replaceChildren(...names.map((name) => button("suggestion", text(name), () => send(text(name)))));
  talk.messages.forEach((message, index) => $("log").append(nodeOf(message, index)));
  showRunning();
  toEnd();
}

function nodeOf(message, index) {
  if (message.role === "user") {
    return questionNode(message, { announce, edit: index === talk.lastQuestion ? startEdit : null });
  }
  const last = index === talk.messages.length - 1;
  const view = new AnswerView(message, { announce, again: last ? again : null, changeKey: () => showGate() });
  views.set(message, view);
  return view.node;
}

function showRunning() {
  const running = talk.running !== null;
  if (!running && document.activeElement === $("stop")) focusComposer(true);
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("send").disabled = $("composer-text").value.trim() === "";
}

function send(words) {
  if (talk.running || words.trim() === "") return;
  const answer = editing ? talk.ask(words, talk.lastQuestion) : talk.ask(words);
  endEdit();
  start(answer);
}

function again() {
  if (!talk.running && talk.lastQuestion >= 0) start(talk.again());
}

async function start(answer) {
  const done = talk.run(key, answer, () => draw(answer));
  talk.save();
  atEnd = true;
  showAll();
  announce(text("answering"));
  await done;
  views.get(answer)?.update();
  showRunning();
  followEnd();
  if (views.has(answer)) announce(answer.error ? "" : text(answer.stopped ? "stopped" : "answered"));
}

// At most one drawing a frame, however fast the tokens come. A hidden tab has no frames and needs none.
function draw(answer) {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    views.get(answer)?.update();
    followEnd();
  });
}

function newChat() {
  talk.clear();
  endEdit();
  showAll();
  focusComposer(true);
}

// ---- scrolling ----

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function followEnd() {
  if (atEnd) toEnd();
}

function onScroll() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  atEnd = scrollHeight - scrollTop - clientHeight < 48;
  $("to-end").hidden = atEnd;
}

// ---- composer ----

function focusComposer(always = false) {
  if (always || !touch.matches) $("composer-text").focus(); // an on-screen keyboard must not jump up by itself
}

function setDraft(words) {
  $("composer-text").value = words;
  fitComposer();
}

function fitComposer() {
  const field = $("composer-text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 220)}px`;
  showRunning();
}

function startEdit() {
  if (talk.running || talk.lastQuestion < 0) return;
  editing = true;
  $("editing").hidden = false;
  setDraft(talk.messages[talk.lastQuestion].text);
  focusComposer(true);
}

function endEdit() {
  editing = false;
  $("editing").hidden = true;
  setDraft("");
}

// While an input method composes, Enter chooses a word and must not send; Safari ends the composition before the key.
function isComposing(event) {
  return composing || event.isComposing || event.keyCode === 229;
}

function onComposerKey(event) {
  if (isComposing(event)) return;
  const plain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey;
  if (event.key === "Enter" && plain) {
    event.preventDefault();
    send($("composer-text").value);
  } else if (event.key === "ArrowUp" && plain && $("composer-text").value === "") {
    event.preventDefault();
    startEdit();
  }
}

function onPageKey(event) {
  if (isComposing(event) || $("room").hidden || $("settings").open) return;
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName);
  if (event.key === "Escape") {
    if (talk.running) talk.stop();
    else if (editing) endEdit();
  } else if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    focusComposer(true);
  } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    focusComposer(true);
  }
}

// ---- settings and language ----

const FIELDS = { system: "system", temperature: "temperature", maxTokens: "max-tokens" };

function openSettings() {
  for (const [name, id] of Object.entries(FIELDS)) $(id).value = talk.state[name];
  $("settings").showModal();
}

function closeSettings() {
  if (key === "") return; // closed by forgetting everything
  for (const [name, id] of Object.entries(FIELDS)) if ($(id).validity.valid) talk.state[name] = $(id).value;
  talk.save();
  focusComposer();
}

function forget() {
  $("settings").close();
  forgetKey();
  talk.forget();
  key = "";
  endEdit();
  $("log").replaceChildren();
  $("key").value = "";
  $("remember").checked = false;
  showGate();
}

function speak(language) {
  setLanguage(language);
  applyTexts(document);
  $("language").textContent = text("otherLanguage");
  $("language").lang = language === "ja" ? "en" : "ja";
  $("language").title = text("otherLanguageLabel");
  if (!$("room").hidden) showAll();
  showProblem();
}

function switchLanguage() {
  const other = currentLanguage() === "ja" ? "en" : "ja";
  saveLanguage(other);
  speak(other);
}

// ---- wiring ----

$("key-form").addEventListener("submit", onKeyForm);
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("composer-text").value);
});
$("composer-text").addEventListener("input", fitComposer);
$("composer-text").addEventListener("keydown", onComposerKey);
$("composer-text").addEventListener("compositionstart", () => (composing = true));
$("composer-text").addEventListener("compositionend", () => (composing = false));
$("cancel-edit").addEventListener("click", () => {
  endEdit();
  focusComposer(true);
});
$("stop").addEventListener("click", () => talk.stop());
$("new-chat").addEventListener("click", newChat);
$("open-settings").addEventListener("click", openSettings);
$("settings").addEventListener("close", closeSettings);
$("forget").addEventListener("click", forget);
$("language").addEventListener("click", switchLanguage);
$("model").addEventListener("change", () => {
  talk.state.model = $("model").value;
  talk.save();
});
$("scroll").addEventListener("scroll", onScroll, { passive: true });
$("to-end").addEventListener("click", () => {
  toEnd();
  focusComposer();
});
document.addEventListener("keydown", onPageKey);
addEventListener("pagehide", () => talk.save());

speak(loadLanguage() ?? preferredLanguage());
const saved = loadKey();
if (saved) enter(saved, null);
else showGate();
