// Text of a model, as text nodes alone. What would turn letters around or cannot be seen is shown by its number.

const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;

export function plain(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(UNSEEN)) {
    nodes.push(document.createTextNode(text.slice(from, found.index)), mark(found[0]));
    from = found.index + found[0].length;
  }
  nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

function mark(character) {
  const node = document.createElement("span");
  node.className = "unseen-character";
  node.textContent = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return node;
}

export function element(name, content = "", className = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (content) node.append(...plain(content));
  return node;
}
