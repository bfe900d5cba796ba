// A small, safe Markdown: built from DOM nodes only, so text can never become markup. Headings, lists, quotes, code,
// tables, rules, bold, italic, strike-through, inline code and links. What is not understood stays as it was written.

// A model's text is not trusted to be kind: every pattern takes linear time, and nesting has an end.
const DEEPEST = 16;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
// Spans are bounded, so that a text full of openers without an end costs time in proportion to its length.
const INLINE =
  /(`+)([^`]|[^`][\s\S]{0,2000}?[^`])\1(?!`)|\*\*(?=\S)([\s\S]{0,2000}?\S)\*\*|\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)|(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]*[^\s_])_(?![\p{L}\p{N}_])|~~(?=\S)([\s\S]{0,2000}?\S)~~|\[([^\]\n]+)\]\(([^\s()]+(?:\([^\s()]*\))?)\)|(https?:\/\/[^\s<>"'`、。，．」』）】]+)|\\([\\`*_{}[\]()#+\-.!~>|])/gu;

// Makes `container` show `source`. Blocks that have not changed keep their nodes, so that streaming stays cheap and a
// selection in an earlier paragraph survives.
export function renderMarkdown(container, source, decorateCode) {
  const blocks = splitBlocks(source.replace(/\r\n?/g, "\n").split("\n"));
  const old = [...container.children];
  blocks.forEach((block, index) => {
    const identity = JSON.stringify(block);
    if (old[index] && old[index].blockIdentity === identity) return;
    const node = renderBlock(block, decorateCode);
    node.blockIdentity = identity;
    if (old[index]) container.replaceChild(node, old[index]);
    else container.append(node);
  });
  for (const node of old.slice(blocks.length)) node.remove();
}

function splitBlocks(lines, depth = 0) {
  if (depth > DEEPEST) return [{ kind: "paragraph", text: lines.join("\n") }];
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (line.trim() === "") {
      at += 1;
    } else if (fence) {
      at = takeFence(lines, at, fence, blocks);
    } else if (HEADING.test(line)) {
      const [, hashes, title] = HEADING.exec(line);
      blocks.push({ kind: "heading", level: hashes.length, text: title.trimEnd().replace(/ #+$/, "") });
      at += 1;
    } else if (isRule(line)) {
      blocks.push({ kind: "rule" });
      at += 1;
    } else if (QUOTE.test(line)) {
      const inside = takeWhile(lines, at, (each) => QUOTE.test(each));
      blocks.push({ kind: "quote", blocks: splitBlocks(inside.map((each) => QUOTE.exec(each)[1]), depth + 1) });
      at += inside.length;
    } else if (ITEM.test(line)) {
      const inside = takeWhile(lines, at, (each, index) => listGoesOn(lines, index, each));
      blocks.push(list(inside, depth));
      at += inside.length;
    } else if (line.includes("|") && at + 1 < lines.length && isTableRule(line, lines[at + 1])) {
      const rows = takeWhile(lines, at + 2, (each) => each.includes("|"));
      blocks.push({ kind: "table", head: cells(line), rows: rows.map(cells) });
      at += 2 + rows.length;
    } else {
      const inside = takeWhile(lines, at, (each, index) => index === at || !startsBlock(lines, index));
      blocks.push({ kind: "paragraph", text: inside.join("\n") });
      at += inside.length;
    }
  }
  return blocks;
}

function takeFence(lines, at, fence, blocks) {
  const closing = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
  const body = takeWhile(lines, at + 1, (each) => !closing.test(each));
  blocks.push({ kind: "code", language: fence[2].trim().split(/\s/)[0], text: body.join("\n") });
  return at + 1 + body.length + 1; // an unclosed block, as it is while it streams, ends with the text
}

function takeWhile(lines, start, goesOn) {
  let end = start;
  while (end < lines.length && goesOn(lines[end], end)) end += 1;
  return lines.slice(start, end);
}

function startsBlock(lines, index) {
  const line = lines[index];
  return line.trim() === "" || isRule(line) || [FENCE, HEADING, QUOTE, ITEM].some((pattern) => pattern.test(line));
}

function isRule(line) {
  return /^([-*_])\1{2,}$/.test(line.replace(/\s/g, ""));
}

function listGoesOn(lines, index, line) {
  if (ITEM.test(line)) return true;
  if (/^\s{2,}\S/.test(line)) return true; // belongs to the item above
  const next = lines[index + 1];
  if (line.trim() === "") return next !== undefined && (ITEM.test(next) || /^\s{2,}\S/.test(next));
  return !startsBlock(lines, index) && lines[index - 1].trim() !== "";
}

function list(lines, depth) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent.length + 1) items.push([found[3]]);
    else items.at(-1).push(line);
  }
  return {
    kind: "list",
    start: /\d/.test(marker) ? parseInt(marker, 10) : null,
    items: items.map((each) => splitBlocks([each[0], ...dedent(each.slice(1))], depth + 1)),
  };
}

function dedent(lines) {
  const depths = lines.filter((line) => line.trim()).map((line) => line.match(/^\s*/)[0].length);
  const depth = depths.length ? Math.min(...depths) : 0;
  return lines.map((line) => line.slice(depth));
}

function isTableRule(head, line) {
  const rules = cells(line);
  return rules.every((cell) => /^:?-+:?$/.test(cell)) && rules.length === cells(head).length;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function renderBlock(block, decorateCode) {
  switch (block.kind) {
    case "heading":
      return filled(`h${Math.min(6, block.level + 2)}`, block.text);
    case "rule":
      return document.createElement("hr");
    case "code":
      return codeBlock(block, decorateCode);
    case "quote":
      return parent("blockquote", block.blocks, decorateCode);
    case "list":
      return listNode(block, decorateCode);
    case "table":
      return table(block);
    default:
      return filled("p", block.text);
  }
}

function listNode(block, decorateCode) {
  const node = document.createElement(block.start === null ? "ul" : "ol");
  if (block.start !== null && block.start !== 1) node.start = block.start;
  for (const blocks of block.items) {
    const tight = blocks.length > 0 && blocks[0].kind === "paragraph";
    const item = tight ? filled("li", blocks[0].text) : document.createElement("li");
    item.append(...blocks.slice(tight ? 1 : 0).map((each) => renderBlock(each, decorateCode)));
    node.append(item);
  }
  return node;
}

function codeBlock(block, decorateCode) {
  const figure = document.createElement("figure");
  figure.className = "code";
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // long lines are scrolled by keyboard
  const code = document.createElement("code");
  code.textContent = block.text;
  pre.append(code);
  figure.append(decorateCode(block.language, block.text), pre);
  return figure;
}

function table(block) {
  const frame = document.createElement("div");
  frame.className = "table";
  const node = document.createElement("table");
  const row = (tag, texts) => {
    const line = document.createElement("tr");
    line.append(...texts.map((each) => filled(tag, each)));
    return line;
  };
  const head = document.createElement("thead");
  head.append(row("th", block.head));
  const body = document.createElement("tbody");
  body.append(...block.rows.map((each) => row("td", each)));
  node.append(head, body);
  frame.append(node);
  return frame;
}

function parent(tag, blocks, decorateCode) {
  const node = document.createElement(tag);
  node.append(...blocks.map((each) => renderBlock(each, decorateCode)));
  return node;
}

function filled(tag, source) {
  const node = document.createElement(tag);
  node.append(...inline(source));
  return node;
}

function inline(source, depth = 0) {
  const nodes = [];
  let at = 0;
  for (const match of depth > 8 ? [] : source.matchAll(INLINE)) {
    if (match.index > at) nodes.push(...plain(source.slice(at, match.index)));
    nodes.push(inlineNode(match, depth));
    at = match.index + match[0].length;
  }
  if (at < source.length) nodes.push(...plain(source.slice(at)));
  return nodes;
}

function inlineNode(match, depth) {
  const [whole, , code, bold, star, underline, strike, label, address, bare, escaped] = match;
  const around = (tag, inside) => {
    const node = document.createElement(tag);
    node.append(...inline(inside, depth + 1));
    return node;
  };
  if (code !== undefined) {
    const node = document.createElement("code");
    node.textContent = code;
    return node;
  }
  if (bold !== undefined) return around("strong", bold);
  if (star !== undefined || underline !== undefined) return around("em", star ?? underline);
  if (strike !== undefined) return around("s", strike);
  if (label !== undefined) return link(label, address) ?? document.createTextNode(whole);
  if (bare !== undefined) return link(bare, bare) ?? document.createTextNode(whole);
  return document.createTextNode(escaped);
}

// Only addresses that lead to another page; `javascript:` and the like stay text.
function link(label, address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null; // a relative address of the model's would point into this server
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const node = document.createElement("a");
  node.href = url.href;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  node.textContent = label;
  return node;
}

function plain(source) {
  return source.split("\n").flatMap((line, index) => {
    const text = document.createTextNode(line);
    return index ? [document.createElement("br"), text] : [text];
  });
}
