// The score desk: four lines of buttons. A digit scores the active line and goes on to the next.

import { element } from "./plain.js";
import { text } from "./texts.js";

export const AXES = { correctness: 2, instructions: 2, readability: 1 };
const LINES = { ...AXES, severe: 1 };
const NAMES = Object.keys(LINES);

export function total(score) {
  return score.correctness + score.instructions + score.readability;
}

export function adoptable(score) {
  return total(score) >= 4 && !score.severe;
}

// A draft holds numbers where something was chosen: severe is 0 or 1 until it is sent.
export function draftOf(score) {
  return score ? { ...score, severe: Number(score.severe) } : { note: "" };
}

export function whole(draft) {
  return NAMES.every((name) => draft[name] !== undefined);
}

export function sendable(draft) {
  return whole(draft) && (!draft.severe || Boolean(draft.note.trim()));
}

export function scoreOf(draft) {
  const points = Object.fromEntries(Object.keys(AXES).map((name) => [name, draft[name]]));
  return { ...points, severe: Boolean(draft.severe), note: draft.note.trim() };
}

export class Desk {
  #place;
  #changed;
  #draft = { note: "" };
  active = 0;

  constructor(place, changed) {
    this.#place = place;
    this.#changed = changed;
  }

  show(draft) {
    this.#draft = draft;
    const open = NAMES.findIndex((name) => draft[name] === undefined);
    this.active = open < 0 ? 0 : open;
    this.draw();
  }

  draw() {
    this.#place.replaceChildren(...NAMES.map((name, index) => this.#line(name, index)));
  }

  #line(name, index) {
    const line = element("div", "", "line");
    line.setAttribute("role", "group");
    line.tabIndex = -1;
    line.setAttribute("aria-label", text(name));
    line.classList.toggle("active", index === this.active);
    line.append(element("span", text(name), "name"));
    const buttons = element("span", "", "choices");
    for (let points = 0; points <= LINES[name]; points += 1) {
      const button = element("button");
      button.type = "button";
      button.dataset.line = name;
      button.dataset.points = String(points);
      button.setAttribute("aria-pressed", String(this.#draft[name] === points));
      button.append(element("b", String(points)), element("span", text(`${name}${points}`)));
      button.addEventListener("click", () => this.choose(index, points));
      button.addEventListener("focus", () => this.#activate(index));
      buttons.append(button);
    }
    line.append(buttons);
    return line;
  }

  // A line without a choice takes the focus itself: a marked button would look like one that was chosen.
  #activate(index) {
    this.active = index;
    [...this.#place.children].forEach((line, each) => line.classList.toggle("active", each === index));
  }

  choose(index, points) {
    if (points > LINES[NAMES[index]]) return;
    this.#draft[NAMES[index]] = points;
    this.active = Math.min(index + 1, NAMES.length - 1);
    this.draw();
    this.focus();
    this.#changed();
  }

  move(by) {
    this.#activate(Math.min(Math.max(this.active + by, 0), NAMES.length - 1));
    this.focus();
  }

  focus() {
    const chosen = this.#place.children[this.active];
    (chosen.querySelector("[aria-pressed=true]") ?? chosen).focus({ preventScroll: true });
  }
}
