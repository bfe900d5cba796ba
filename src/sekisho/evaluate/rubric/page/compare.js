// The calibration side by side: the one place where raters see each other's scores.

import { element, plain } from "./plain.js";
import { AXES, adoptable, total } from "./scores.js";
import { text } from "./texts.js";

export function compared(view) {
  return view.items.map((item) => {
    const scores = view.sides.map((side) => side.scores[item.task]);
    const part = element("section", "", "compared");
    const folded = element("details");
    folded.append(element("summary", text("showCase")), pre(item.prompt, "asked"), pre(item.answer, "answered"));
    part.append(element("h3", item.title), table(view.sides, scores), folded);
    return part;
  });
}

function pre(words, className) {
  const node = element("pre", words, className);
  node.dir = "auto";
  return node;
}

function table(sides, scores) {
  const node = element("table");
  const head = row("", sides.map((side) => side.rater), "th");
  const lines = Object.keys(AXES).map((axis) => row(text(axis), scores.map((score) => String(score[axis]))));
  lines.push(
    row(text("points"), scores.map((score) => String(total(score)))),
    row(text("severe"), scores.map((score) => text(score.severe ? "severe1" : "severe0"))),
    row(text("verdict"), scores.map((score) => text(adoptable(score) ? "adoptable" : "notAdoptable"))),
    row(text("note"), scores.map((score) => score.note), "td", false),
  );
  node.append(head, ...lines);
  return node;
}

function row(name, cells, kind = "td", marked = true) {
  const node = element("tr");
  node.classList.toggle("differs", kind === "td" && marked && new Set(cells).size > 1);
  const first = element("th", name);
  first.scope = "row";
  const others = cells.map((words) => {
    const cell = element(kind);
    cell.append(...plain(words));
    if (kind === "th") cell.scope = "col";
    return cell;
  });
  node.append(first, ...others);
  return node;
}
