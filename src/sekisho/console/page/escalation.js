// The page of a single-use link. The token stands in the fragment, which the browser sends to nobody; it goes to the
// server in the body of a POST, and out of the address bar at once.

const TEXTS = {
  en: {
    title: "A request waits for you",
    heading: "A request waits for you",
    otherLanguage: "日本語",
    question: "What was asked",
    redacted: "Personal data and secrets have been removed.",
    words: "Your answer, or the reason for a refusal",
    wordsHint: "An answer is shown to the person who asked, in place of the model's. Approving needs no words.",
    approve: "Approve: let the model answer",
    answer: "Answer in its place",
    deny: "Refuse",
    category: "Category",
    severity: "Severity",
    rationale: "Why it was held",
    model: "Model",
    until: "Answer by",
    ticket: "Ticket",
    you: "You answer as",
    noToken: "This link is not complete. Open it as it stands in the message that you got.",
    needsWords: "Write the answer first.",
    approved: "Approved. The model answers now.",
    approvedTicket: "Approved. The request passes once when it is asked again.",
    answered: "Your answer was handed over.",
    denied: "Refused. Whoever asked is told.",
    offline: "The server does not answer. Nothing was decided; try again.",
  },
  ja: {
    title: "判断待ちのリクエスト",
    heading: "判断待ちのリクエストがあります",
    otherLanguage: "English",
    question: "依頼の内容",
    redacted: "個人情報と機密情報は取り除かれています。",
    words: "あなたの回答、またはお断りの理由",
    wordsHint: "回答は、モデルの代わりに依頼者へ表示されます。承認だけなら入力は要りません。",
    approve: "承認する(モデルが答える)",
    answer: "代わりに回答する",
    deny: "断る",
    category: "分類",
    severity: "重大度",
    rationale: "止めた理由",
    model: "モデル",
    until: "期限",
    ticket: "受付番号",
    you: "回答者",
    noToken: "リンクが不完全です。届いたメッセージのリンクをそのまま開いてください。",
    needsWords: "先に回答を入力してください。",
    approved: "承認しました。モデルが回答します。",
    approvedTicket: "承認しました。同じ依頼がもう一度送られたとき、一度だけ通ります。",
    answered: "あなたの回答を依頼者に渡しました。",
    denied: "お断りしました。依頼者に伝えられます。",
    offline: "サーバーが応答しません。まだ何も決まっていません。もう一度お試しください。",
  },
};

const element = (id) => document.getElementById(id);
const token = decodeURIComponent(location.hash.slice(1));
let language = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";
let ticket = null;
let told = null; // the key of a text, or a sentence of the server

history.replaceState(null, "", location.pathname);

function text(key) {
  return TEXTS[language][key];
}

function draw() {
  document.documentElement.lang = language;
  document.title = text("title");
  element("language").textContent = text("otherLanguage");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  if (told) element("notice").textContent = text(told.key) ?? told.key;
  element("notice").classList.toggle("trouble", Boolean(told?.trouble));
  if (ticket) drawTicket();
}

function drawTicket() {
  const rows = [
    ["ticket", ticket.id],
    ["category", ticket.category],
    ["severity", ticket.severity],
    ["rationale", ticket.rationale],
    ["model", ticket.model],
    ["until", new Date(ticket.expires_at * 1000).toLocaleString(language)],
    ["you", ticket.approver],
  ];
  const nodes = rows.flatMap(([key, value]) => {
    const name = document.createElement("dt");
    const data = document.createElement("dd");
    name.textContent = text(key);
    data.textContent = value;
    return [name, data];
  });
  element("facts").replaceChildren(...nodes);
  element("question").textContent = ticket.question;
}

function tell(key, trouble = false) {
  told = { key, trouble };
  draw();
}

async function ask(action, words = "") {
  const body = { token, action };
  if (action === "answer") body.answer = words;
  if (action === "deny" && words) body.reason = words;
  const response = await fetch(location.pathname, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? String(response.status));
  return answer;
}

async function decide(action) {
  const words = element("words").value.trim();
  if (action === "answer" && !words) {
    tell("needsWords", true);
    element("words").focus();
    return;
  }
  const buttons = document.querySelectorAll("[data-action]");
  for (const button of buttons) button.disabled = true;
  try {
    const decided = await ask(action, words);
    element("decision").hidden = true;
    tell(decided.state === "approved" && decided.behaviour === "ticket" ? "approvedTicket" : decided.state);
  } catch (error) {
    for (const button of buttons) button.disabled = false;
    tell(error instanceof TypeError ? "offline" : error.message, true);
  }
}

element("language").addEventListener("click", () => {
  language = language === "ja" ? "en" : "ja";
  draw();
});
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => decide(button.dataset.action));
}

draw();
if (!token) {
  tell("noToken", true);
} else {
  try {
    ticket = await ask("look");
    element("ticket").hidden = false;
    draw();
  } catch (error) {
    tell(error instanceof TypeError ? "offline" : error.message, true);
  }
}
