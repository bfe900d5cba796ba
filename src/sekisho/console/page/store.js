// What the page remembers. The key and the conversation live in the tab; the key goes to the device only when asked.

const KEY = "sekisho.key";
const STATE = "sekisho.chat";
const LANGUAGE = "sekisho.language";

// Storage can be switched off or full; the page then works from memory until it is closed.
function attempt(action) {
  try {
    return action();
  } catch (error) {
    console.warn("storage is not available", error);
    return null;
  }
}

export function loadKey() {
  return attempt(() => sessionStorage.getItem(KEY) || localStorage.getItem(KEY)) || "";
}

export function saveKey(key, remember) {
  attempt(() => {
    sessionStorage.setItem(KEY, key);
    if (remember) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  });
}

export function forgetKey() {
  attempt(() => {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  });
}

export function loadLanguage() {
  return attempt(() => localStorage.getItem(LANGUAGE));
}

export function saveLanguage(language) {
  attempt(() => localStorage.setItem(LANGUAGE, language));
}

// {messages, model, system, temperature, maxTokens}; a state from another version of the page is not taken over.
export function loadState() {
  const empty = { version: 1, messages: [], model: "", system: "", temperature: "", maxTokens: "" };
  const saved = attempt(() => JSON.parse(sessionStorage.getItem(STATE) || "null"));
  return saved && saved.version === 1 && Array.isArray(saved.messages) ? { ...empty, ...saved } : empty;
}

export function saveState(state) {
  attempt(() => sessionStorage.setItem(STATE, JSON.stringify(state)));
}

export function forgetState() {
  attempt(() => sessionStorage.removeItem(STATE));
}
