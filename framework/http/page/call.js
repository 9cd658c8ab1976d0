// From what is filled in to a request, to the lines for a shell, and to what came back.

const CODES = ["OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
  "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"];
const FORMATS = { "application/x-ndjson": "lines", "text/event-stream": "events", "application/json": "one array" };

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const plain = (value) => typeof value === "string" ? value : JSON.stringify(value);

function merged(into, from) {
  for (const [key, value] of Object.entries(from)) {
    const both = [into[key], value].every((one) => one && typeof one === "object" && !Array.isArray(one));
    into[key] = both ? merged({ ...into[key] }, value) : value;
  }
  return into;
}

function nested(path, value) {
  return path.split(".").reduceRight((inside, name) => ({ [name]: inside }), value);
}

// The path with its values in it; `missing` is told of those that are not there.
function filled(template, values, parameters, missing) {
  return template.replace(/\{([^}]+)\}/g, (_, name) => {
    const value = values[name];
    if (value === undefined || value === "") { missing(name); return `{${name}}`; }
    const many = parameters.find((one) => one.in === "path" && one.name === name)?.["x-multi-segment"];
    return many ? plain(value).split("/").map(encodeURIComponent).join("/") : encodeURIComponent(plain(value));
  });
}

function queryOf(parameters, values) {
  const pairs = [];
  for (const one of parameters.filter((parameter) => parameter.in === "query")) {
    const value = values[one.name];
    if (value === undefined) continue;
    if (one.content) pairs.push([one.name, JSON.stringify(value)]);
    else if (one.style === "deepObject") for (const [key, held] of Object.entries(value)) pairs.push([`${one.name}[${key}]`, plain(held)]);
    else if (Array.isArray(value)) for (const held of value) pairs.push([one.name, plain(held)]);
    else pairs.push([one.name, plain(value)]);
  }
  return pairs;
}

const withQuery = (path, pairs) => pairs.length
  ? `${path}?${pairs.map((pair) => pair.map(encodeURIComponent).join("=")).join("&")}` : path;

// The fields that a body sets, as a field mask names them in JSON.
function maskOf(forms, schema, body, prefix = "") {
  const properties = forms.resolve(schema).properties || {};
  return Object.entries(body || {}).flatMap(([key, value]) => {
    const name = key.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
    const held = forms.resolve(properties[key] || properties[name]);
    const opens = forms.kind(held) === "message" && !held.name?.startsWith("google.protobuf.") && !(value instanceof File);
    return opens && value && Object.keys(value).length ? maskOf(forms, held, value, `${prefix}${name}.`) : [prefix + name];
  }).filter(Boolean);
}

// What is in the quotes of an entity tag that a field is set to, or undefined.
function tagOf(headers) {
  const found = /^\s*"([^"]*)"\s*$/.exec(headers.findLast(([name]) => name.toLowerCase() === "if-match")?.[1] || "");
  try { return found ? decodeURIComponent(found[1]) : undefined; } catch { return found[1]; }
}

// The request messages of gRPC for what HTTP has in path, query, body and headers.
function grpcMessages(operation, values, bodies, headers, forms, schema) {
  const told = operation.operation["x-grpc"] || {};
  const preset = {};
  for (const one of operation.parameters.filter((parameter) => parameter.in === "query")) {
    if (values[one.name] !== undefined) merged(preset, nested(one.name, values[one.name]));
  }
  for (const [field, template] of Object.entries(told.path || {})) {
    const whole = /^\{([^}]+)\}$/.exec(template);
    const value = whole ? values[whole[1]] : template.replace(/\{([^}]+)\}/g, (all, name) => plain(values[name] ?? all));
    if (value !== undefined) merged(preset, nested(field, value));
  }
  if (told.ifMatch && tagOf(headers) !== undefined) merged(preset, nested(told.ifMatch, tagOf(headers)));
  const mask = told.mask && preset[told.mask] === undefined ? maskOf(forms, schema, bodies[0]) : [];
  if (mask.length) preset[told.mask] = mask.join(",");
  const messages = (told.body ? bodies : [undefined]).map((body) => {
    const held = body === undefined ? {} : told.body === "*" ? structuredClone(body) : { [told.body]: structuredClone(body) };
    return merged(held && typeof held === "object" ? held : {}, preset);
  });
  return messages.length || told.clientStreaming ? messages : [preset];
}

// A message with a file in it as the parts of a form; a field of bytes is no text there.
function partsOf(forms, schema, message) {
  const properties = forms.resolve(schema).properties || {};
  const part = (name, value, held) => {
    const bytes = forms.resolve(held).format === "byte";
    if (bytes && !(value instanceof File)) throw new Mistake(`${name} must be a file, too: a form has bytes as they are`);
    return [name, value instanceof File ? value : plain(value)];
  };
  return Object.entries(message).flatMap(([name, value]) => {
    const held = forms.resolve(properties[name]);
    if (Array.isArray(value) && held.items) return value.map((one) => part(name, one, held.items));
    if (forms.kind(held) === "map") return Object.entries(value).map(([key, one]) => part(`${name}[${key}]`, one, held.additionalProperties));
    return [part(name, value, held)];
  });
}

function formArgument([name, value]) {
  if (!(value instanceof File)) return ["--form-string", quoted(`${name}=${value}`)];
  const file = /[;,"\\]/.test(value.name) ? `"${value.name.replace(/["\\]/g, "\\$&")}"` : value.name;
  return ["-F", quoted(`${name}=@${file}`)];
}

function curlLine(request, url) {
  const parts = ["curl"];
  if (request.streaming) parts.push("-N");
  if (request.method !== (request.body === undefined ? "GET" : "POST")) parts.push("-X", request.method);
  parts.push(quoted(url));
  for (const [name, value] of request.headers) parts.push("-H", quoted(`${name}: ${value}`));
  if (request.parts) for (const part of request.parts) parts.push(...formArgument(part));
  else if (request.file) parts.push("--data-binary", quoted(`@${request.file}`));
  else if (request.body !== undefined) parts.push("--data-raw", quoted(request.body));
  return parts.join(" ");
}

// Headers that the server hands on as metadata, beside those that begin with `x-`.
const HANDED_ON = new Set(["authorization", "accept-language", "baggage", "idempotency-key", "last-event-id", "traceparent", "tracestate", "user-agent"]);

function metadataOf(headers) {
  return headers.map(([name, value]) => [name.toLowerCase(), value])
    .map(([name, value]) => [name.startsWith("grpc-metadata-") ? name.slice(14) : HANDED_ON.has(name) || name.startsWith("x-") ? name : "", value])
    .filter(([name]) => name && name !== "x-server-timeout");
}

// The deadline that headers name, in seconds, or undefined.
function deadlineOf(headers) {
  const told = Object.fromEntries(headers.map(([name, value]) => [name.toLowerCase(), value]));
  const grpc = /^(\d+)([HMSmun])$/.exec(told["grpc-timeout"] || "");
  if (grpc) return Number(grpc[1]) * { H: 3600, M: 60, S: 1, m: 1e-3, u: 1e-6, n: 1e-9 }[grpc[2]];
  return Number(told["connect-timeout-ms"]) / 1000 || Number(told["x-server-timeout"]) || undefined;
}

function grpcurlLine(operation, messages, headers, target, plaintext) {
  const parts = ["grpcurl"];
  const seconds = deadlineOf(headers);
  if (plaintext) parts.push("-plaintext");
  if (seconds) parts.push("-max-time", String(seconds));
  for (const [name, value] of metadataOf(headers)) parts.push("-H", quoted(`${name}: ${value}`));
  const data = messages.map((message) => JSON.stringify(message)).join(" ");
  if (data && data !== "{}") parts.push("-d", quoted(data));
  return [...parts, target, operation.operation["x-grpc"].method].join(" ");
}

const pretty = (text) => { try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; } };

// JSON with its parts marked, as nodes.
function highlighted(text) {
  const pattern = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(?:true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  const nodes = [];
  let at = 0;
  if (text.length > 200000) return [text];
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(at, match.index));
    const kind = match[2] !== undefined ? "key" : match[1] !== undefined ? "text" : "word";
    nodes.push(element("span", { class: `json-${kind}` }, match[1] ?? match[0]), match[2] ?? "");
    at = match.index + match[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

// The place where an answer is shown, live.
class Answer {
  constructor() {
    this.status = element("div", { class: "status", role: "status", "aria-live": "polite" });
    this.headers = element("div", {});
    this.body = element("div", { class: "answer" });
    this.node = element("section", { class: "panel", "aria-label": "Answer", hidden: true },
      element("h3", {}, "Answer"), this.status, this.headers, this.body);
  }

  hide() { this.node.hidden = true; }

  start(text) {
    this.node.hidden = false;
    this.began = performance.now();
    this.count = 0;
    this.dropped = 0;
    this.headers.replaceChildren();
    this.body.replaceChildren();
    this.log = this.failure = null;
    this.say("", text);
    this.node.scrollIntoView({ block: "nearest" });
  }

  since() {
    const passed = performance.now() - this.began;
    return passed < 10000 ? `${Math.round(passed)} ms` : `${(passed / 1000).toFixed(1)} s`;
  }

  say(kind, text, more = "") {
    this.status.replaceChildren(element("strong", { class: kind }, text), ` ${[more, this.since()].filter(Boolean).join(" · ")}`);
  }

  showHeaders(headers) {
    const rows = [...headers].map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
    this.headers.replaceChildren(element("details", {}, element("summary", {}, `${rows.length} headers`),
      element("table", {}, element("tbody", {}, rows))));
  }

  showText(text, type) {
    const shown = /json/.test(type) ? pretty(text) : text;
    this.body.replaceChildren(element("pre", { tabindex: "0", "aria-label": "Body" }, /json/.test(type) ? highlighted(shown) : shown));
  }

  showBytes(blob, type) {
    const url = URL.createObjectURL(blob);
    const link = element("a", { href: url, download: "body" }, `Save ${blob.size} bytes of ${type || "no type"}`);
    this.body.replaceChildren(type.startsWith("image/") ? element("img", { src: url, alt: "The image that came back" }) : "", element("p", {}, link));
  }

  // One message of a stream; the last thousand stay.
  message(text, sign = "←") {
    if (!this.log) {
      this.note = element("p", { class: "quiet" });
      this.log = element("ol", { class: "log", tabindex: "0", "aria-label": "Messages" });
      this.body.replaceChildren(this.note, this.log);
    }
    const end = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 4;
    const failed = /^\s*\{\s*"error"\s*:/.test(text);
    this.log.append(element("li", { class: failed ? "bad" : sign === "→" ? "sent" : "" },
      element("span", { class: "when" }, `${sign} ${this.since()}`), element("pre", {}, highlighted(pretty(text)))));
    if (failed) this.failure = text; else if (sign === "←") this.count++;
    if (this.log.childElementCount > 1000) { this.log.firstChild.remove(); this.note.textContent = `${++this.dropped} earlier messages are not shown.`; }
    if (end) this.log.scrollTop = this.log.scrollHeight;
  }

  messages() { return this.count === 1 ? "1 message" : `${this.count} messages`; }
}

// A call that came to no end, with what to call that.
class Broken extends Error {
  constructor(title, message) { super(message); this.title = title; }
}

const broken = (title, message) => (error) => { throw error.name === "TypeError" ? new Broken(title, message) : error; };

async function callHttp(request, answer, signal) {
  answer.start("Waiting…");
  const asked = new Request(request.url, { method: request.method, headers: request.headers, body: request.sent, signal,
    credentials: "same-origin", redirect: "follow", cache: "no-store" });  // which complains of what cannot be sent
  const response = await fetch(asked).catch(broken("No answer", `${new URL(request.url).host} cannot be reached`));
  await showResponse(request, response, answer).catch(broken("Broken off", "the connection was lost before the end of the answer"));
}

async function showResponse(request, response, answer) {
  const status = [response.ok ? "good" : "bad", `${response.status} ${response.statusText}`.trim()];
  const type = response.headers.get("content-type") || "";
  answer.showHeaders(response.headers);
  answer.say(...status);
  const lines = /ndjson|jsonl/.test(type), events = /event-stream/.test(type);
  if (lines || events) {
    const decoder = new TextDecoder();
    let left = "";
    const take = (text) => {
      const parts = (left + text).split(lines ? "\n" : /\r?\n\r?\n/);
      left = parts.pop();
      for (const part of parts) shown(part);
      answer.say(...status, answer.messages());
    };
    const shown = (part) => {
      if (lines) { if (part.trim()) answer.message(part); return; }
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      const name = /^event: ?(.*)$/m.exec(part)?.[1];
      if (data && name === "error") answer.message(`{"error":${data}}`);
      else if (data && name !== "end") answer.message(data);
    };
    const reader = response.body.getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) take(decoder.decode(read.value, { stream: true }));
    take(decoder.decode() + (lines ? "\n" : "\n\n"));
    if (answer.failure) answer.say("bad", `${status[1]}, then ${CODES[JSON.parse(answer.failure).error?.code] || "an error"}`, answer.messages());
    return;
  }
  if (request.streaming && response.ok && /json/.test(type)) {  // an array that grows
    const decoder = new TextDecoder();
    const reader = response.body.getReader();
    let whole = "";
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      whole += decoder.decode(read.value, { stream: true });
      answer.showText(whole, "text/plain");
      answer.say(...status);
    }
    answer.showText(whole, type);
  } else if (/json|^text\/|xml/.test(type) || !type) {
    answer.showText(await response.text(), type);
  } else {
    answer.showBytes(await response.blob(), type);
  }
  answer.say(...status);
}

// A call over WebSocket: `send` a message, `end` the requests, `close` it.
class SocketCall {
  constructor(url, answer, onChange) {
    this.answer = answer;
    this.open = false;
    answer.start("Connecting…");
    this.socket = new WebSocket(url);
    this.socket.onopen = () => { this.open = true; answer.say("good", "Open"); onChange(); };
    this.socket.onmessage = async (event) => {
      answer.message(typeof event.data === "string" ? event.data : await event.data.text());
      answer.say("good", "Open", answer.messages());
    };
    this.socket.onclose = (event) => {
      if (event.code === 1006) {  // which browsers make up
        const why = this.open ? "the server is gone" : "the server cannot be reached, or lets nobody connect here";
        answer.say("bad", this.open ? "Connection lost" : "No connection", [why, this.open ? answer.messages() : ""].filter(Boolean).join(" · "));
      } else {
        const code = event.code === 1000 ? "OK" : event.code >= 4000 ? CODES[event.code - 4000] : "Closed";
        answer.say(event.code === 1000 ? "good" : "bad", `${code || "Closed"} (${event.code})`, [event.reason, answer.messages()].filter(Boolean).join(" · "));
      }
      this.open = false;
      this.over = true;
      onChange();
    };
  }

  send(text) { this.socket.send(text); this.answer.message(text, "→"); }

  end() { this.socket.send(""); this.ended = true; }

  close() { this.socket.close(1000); }
}
