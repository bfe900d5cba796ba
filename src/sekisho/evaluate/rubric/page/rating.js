// The rating page: one task at a time, saved as soon as its four lines are chosen.

import { compared } from "./compare.js";
import { element, plain } from "./plain.js";
import { Desk, adoptable, draftOf, scoreOf, sendable, total, whole } from "./scores.js";
import * as server from "./server.js";
import { change, current, kind, text } from "./texts.js";

const at = (id) => document.getElementById(id);
const POLL_MS = 3000;
const NOTE_MS = 700;
const MAINS = ["task", "review", "waiting", "discussion", "done"];

let view = null;
let place = 0; // the index of a task; the number of tasks is the review
let drafts = new Map();
let notice = null; // {key, values, trouble}
let writing = Promise.resolve();
let timer = 0;
let polling = 0;
const desk = new Desk(at("axes"), () => changed());

function tell(key, values = {}, trouble = false) {
  notice = key ? { key, values, trouble } : null;
  at("notice").replaceChildren(...(notice ? plain(text(key, values)) : []));
  at("notice").classList.toggle("trouble", trouble);
}

function fail(error) {
  if (error instanceof server.Refused) {
    if (error.status === 401) tell("ended", {}, true);
    else tell("notKept", { why: error.message }, true);
  } else {
    tell("offline", {}, true);
  }
}

// ---- drawing ----

function draw() {
  document.documentElement.lang = current();
  document.title = `${text("heading")} · Sekisho`;
  at("language").textContent = text("otherLanguage");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", text(node.dataset.label));
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = text(node.dataset.placeholder);
  if (notice) tell(notice.key, notice.values, notice.trouble);
  if (!view) return;
  const rated = view.items.filter((item) => item.score).length;
  const again = view.round > 1 ? text("again", { round: view.round }) : "";
  const who = [text("who", { rater: view.rater }), text(`stage_${view.stage}`), again];
  at("who").textContent = who.filter(Boolean).join(" · ");
  const counting = view.stage === "calibration" || view.stage === "rating";
  at("progress").textContent = counting ? text("progress", { done: rated, count: view.items.length }) : "";
  const shown = counting ? (place < view.items.length ? "task" : "review") : view.stage;
  for (const name of MAINS) at(name).hidden = name !== shown;
  at("steps").hidden = !counting;
  if (counting) drawSteps();
  if (shown === "task") drawTask();
  if (shown === "review") drawReview();
  if (shown === "discussion") drawDiscussion();
  if (shown === "done") drawDone();
}

function drawSteps() {
  at("steps").setAttribute("aria-label", text("steps"));
  const steps = view.items.map((item, index) => {
    const step = element("button", String(index + 1), "step");
    const label = text("step", { number: index + 1, title: item.title });
    step.setAttribute("aria-label", item.score ? `${label} (${text("stepDone")})` : label);
    step.title = item.title;
    step.classList.toggle("rated", Boolean(item.score));
    return step;
  });
  const last = element("button", text("stepReview"), "step last");
  [...steps, last].forEach((step, index) => {
    step.type = "button";
    if (index === place) step.setAttribute("aria-current", "step");
    step.addEventListener("click", () => goTo(index));
  });
  at("steps").replaceChildren(...steps, last);
}

function drawTask() {
  const item = view.items[place];
  at("kind").textContent = kind(item.kind);
  at("task-language").textContent = text(`language_${item.language}`);
  at("title").replaceChildren(...plain(item.title));
  at("prompt").replaceChildren(...plain(item.prompt));
  at("prompt").lang = item.language;
  at("answer").replaceChildren(...plain(item.answer));
  drawNotes("needs", item.needs);
  drawNotes("defects", item.defects);
  const memos = view.sides.filter((side) => side.memo);
  at("memos").hidden = !memos.length;
  at("memos").querySelector("div").replaceChildren(
    ...memos.map((side) => element("p", `${side.rater}: ${side.memo}`, "told")),
  );
  at("note").value = draft().note;
  desk.show(draft());
  drawSum();
}

function drawNotes(id, notes) {
  const lines = notes[current()] ?? Object.values(notes)[0] ?? [];
  at(id).querySelector("ul").replaceChildren(...lines.map((line) => element("li", line)));
}

function drawSum() {
  const own = draft();
  const parts = [];
  if (whole(own)) parts.push(text("total", { total: total(own) }), text(adoptable(own) ? "adoptable" : "notAdoptable"));
  const kept = view.items[place].score;
  const same = kept && sendable(own) && JSON.stringify(scoreOf(own)) === JSON.stringify(scoreOf(draftOf(kept)));
  if (whole(own) && !sendable(own)) parts.push(text("needsNote"));
  else if (same) parts.push(text("kept"));
  else if (!whole(own)) parts.push(text("open"));
  at("sum").textContent = parts.join(" · ");
  at("sum").className = whole(own) && !sendable(own) ? "trouble" : same ? "kept" : "";
}

function drawReview() {
  const head = element("tr");
  head.append(...["task", "points", "verdict", "note"].map((key) => element("th", text(key))));
  const rows = view.items.map((item, index) => {
    const row = element("tr");
    const name = element("td");
    const link = element("button", `${index + 1}. ${item.title}`, "link");
    link.type = "button";
    link.addEventListener("click", () => goTo(index));
    name.append(link);
    const score = item.score;
    const verdict = score ? text(adoptable(score) ? "adoptable" : "notAdoptable") : text("open");
    const why = score?.severe ? `${text("severe")}: ${score.note}` : (score?.note ?? "");
    const cell = element("td", verdict, score ? (adoptable(score) ? "good" : "bad") : "open");
    row.append(name, element("td", score ? String(total(score)) : "—"), cell, element("td", why));
    return row;
  });
  at("own").replaceChildren(head, ...rows);
  at("hand-in").disabled = view.items.some((item) => !item.score);
}

function drawDiscussion() {
  at("compared").replaceChildren(...compared(view));
  drawOtherMemo();
}

function drawOtherMemo() {
  const other = view.sides[1]?.memo ?? "";
  at("other-memo").hidden = !other;
  at("other-memo").querySelector("p").replaceChildren(...plain(other));
}

function drawDone() {
  at("done-hint").textContent = `${text(view.other_done ? "doneBoth" : "doneWaits")} ${text("closePage")}`;
}

// ---- scoring ----

function draft() {
  const item = view.items[place];
  if (!drafts.has(item.task)) drafts.set(item.task, draftOf(item.score));
  return drafts.get(item.task);
}

function changed() {
  drawSum();
  keep(view.items[place]);
}

// One write after the other, each of what stands there when its turn comes.
function keep(item) {
  const round = view.round;
  writing = writing.then(async () => {
    const own = drafts.get(item.task);
    if (!own || !sendable(own)) return;
    const score = scoreOf(own);
    if (item.score && JSON.stringify(score) === JSON.stringify(scoreOf(draftOf(item.score)))) return;
    await server.rate(round, item.task, score);
    item.score = score;
    if (notice?.trouble) tell(null);
    progressed();
  }).catch(fail);
  return writing;
}

function progressed() {
  const rated = view.items.filter((item) => item.score).length;
  at("progress").textContent = text("progress", { done: rated, count: view.items.length });
  const focused = document.activeElement?.closest("#steps");
  if (!focused) drawSteps();
  if (place < view.items.length) drawSum();
  else drawReview();
}

function goTo(index) {
  if (place < view.items.length) {
    clearTimeout(timer);
    keep(view.items[place]);
  }
  place = Math.min(Math.max(index, 0), view.items.length);
  if (!notice?.trouble) tell(null);
  draw();
  scrollTo(0, 0);
  if (place < view.items.length) desk.focus();
  else at("review").querySelector("h2").focus();
}

// The next task that has no score, behind this one first; without any, the review.
function nextOpen() {
  const order = [...view.items.keys()].map((step) => (place + 1 + step) % view.items.length);
  return order.find((index) => index !== place && !sendable(drafts.get(view.items[index].task) ?? draftOf(view.items[index].score)))
    ?? view.items.length;
}

function next() {
  if (!whole(draft())) return desk.focus();
  if (!sendable(draft())) return at("note").focus();
  return goTo(nextOpen());
}

async function handIn() {
  await writing;
  if (view.items.some((item) => !item.score)) return tell("missing", {}, true);
  try {
    show(await server.handIn(view.round));
  } catch (error) {
    fail(error);
  }
}

async function begin() {
  try {
    await server.remember(at("memo").value);
    if ((await server.view()).memo_needed) {
      tell("memoNeeded", {}, true);
      at("memo").focus();
      return;
    }
    tell(null);
    show(await server.begin());
  } catch (error) {
    fail(error);
  }
}

// ---- stages ----

function show(found) {
  const moved = view?.stage !== found.stage || view?.round !== found.round;
  view = found;
  if (moved) {
    drafts = new Map();
    const open = view.items.findIndex((item) => !item.score);
    place = open < 0 ? view.items.length : open;
    at("memo").value = view.sides[0]?.memo ?? "";
  }
  clearTimeout(polling);
  if (view.stage === "waiting" || view.stage === "discussion") polling = setTimeout(poll, POLL_MS);
  if (!moved) {
    if (view.stage === "discussion") drawOtherMemo();
    return;
  }
  draw();
  scrollTo(0, 0);
  if (!at("task").hidden) desk.focus();
  else document.querySelector("main:not([hidden]) h2").focus();
}

async function poll() {
  try {
    show(await server.view());
  } catch (error) {
    fail(error);
  }
}

// ---- keys ----

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented || !view) return;
  const typing = event.target === at("note") || event.target === at("memo");
  if (typing) {
    if (event.key === "Escape") desk.focus();
    return;
  }
  if (at("task").hidden) {
    if (!at("review").hidden && event.key === "ArrowLeft") goTo(place - 1);
    return;
  }
  const inside = event.target.closest?.("#axes");
  const keys = {
    ArrowLeft: () => goTo(place - 1),
    ArrowRight: () => goTo(place + 1),
    ArrowUp: inside ? () => desk.move(-1) : null,
    ArrowDown: inside ? () => desk.move(1) : null,
    Enter: event.target.closest?.("button, summary") && !inside ? null : next,
    n: () => at("note").focus(),
    N: () => at("note").focus(),
  };
  const act = /^[012]$/.test(event.key) ? () => desk.choose(desk.active, Number(event.key)) : keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

document.addEventListener("keydown", pressed);
at("language").addEventListener("click", () => {
  change();
  draw();
});
at("note").addEventListener("input", () => {
  draft().note = at("note").value;
  drawSum();
  clearTimeout(timer);
  const item = view.items[place];
  timer = setTimeout(() => keep(item), NOTE_MS);
});
at("note").addEventListener("change", () => changed());
at("note").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    next();
  }
});
at("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(view.items[place].answer);
  tell("copied");
});
at("next").addEventListener("click", () => next());
at("back").addEventListener("click", () => goTo(place - 1));
at("reconsider").addEventListener("click", () => goTo(place - 1));
at("hand-in").addEventListener("click", () => handIn());
at("begin").addEventListener("click", () => begin());

draw();
try {
  await server.enter();
  show(await server.view());
} catch (error) {
  fail(error);
}
