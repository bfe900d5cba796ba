// Server-sent events from text in any portions (WHATWG HTML, section 9.2): LF, CR or CRLF, comments, split anywhere.

export class SseParser {
  constructor() {
    this.rest = "";
    this.data = [];
    this.event = "";
    this.afterCr = false;
    this.opened = false;
  }

  // The events that this portion completes, as {event, data}.
  feed(portion) {
    const events = [];
    if (this.afterCr && portion.startsWith("\n")) portion = portion.slice(1);
    if (portion === "") return events;
    if (!this.opened) {
      this.opened = true;
      if (portion.startsWith("\uFEFF")) portion = portion.slice(1);
    }
    this.afterCr = portion.endsWith("\r");
    const lines = (this.rest + portion).split(/\r\n|\r|\n/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line !== "") {
        this.field(line);
      } else {
        if (this.data.length) events.push({ event: this.event || "message", data: this.data.join("\n") });
        this.data = [];
        this.event = "";
      }
    }
    return events;
  }

  field(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment, such as a keep-alive
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") this.data.push(value);
    else if (name === "event") this.event = value;
  }
}
