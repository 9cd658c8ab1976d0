// One method: what is said of it, the form, the call and its answer.

const secrets = {};  // what was entered for authentication, as long as the page is open

class MethodView {
  constructor(page, one) {
    Object.assign(this, { page, one, forms: page.forms, api: page.api });
    const { operation, grpc } = one;
    this.content = operation.requestBody?.content || {};
    this.success = Object.keys(operation.responses || {}).find((status) => status.startsWith("2"));
    this.replies = operation.responses?.[this.success]?.content || {};
    this.raw = this.content["application/octet-stream"] && !this.content["application/json"];
    this.items = this.content["application/x-ndjson"]?.["x-itemSchema"];  // of a stream of requests
    this.schema = this.items || this.content["application/json"]?.schema;
    const parts = this.content["multipart/form-data"]?.schema?.properties || {};
    this.files = new Set(Object.keys(parts).filter((name) => parts[name].contentMediaType));
    const bound = Object.keys(grpc.path || {});
    this.without = grpc.body === "*" ? bound
      : bound.filter((path) => path.startsWith(`${grpc.body}.`)).map((path) => path.slice(grpc.body.length + 1));
    this.target = this.api["x-grpc-target"]?.replace(/^(0\.0\.0\.0|\[::\])(?=:)/, location.hostname);
    this.answer = new Answer();
    const others = page.operations.filter((other) => grpc.method && other.grpc.method === grpc.method);
    this.transport = this.transports();
    this.form = element("form", { class: "panel", "aria-label": "Request", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.go(); },
      oninput: () => this.soon(), onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.go(); } } });
    this.fill();
    this.lines = { curl: codeLine("curl"), grpcurl: codeLine("grpcurl") };
    this.nodes = [
      element("h1", { class: operation.deprecated ? "deprecated" : undefined }, one.name, operation.deprecated ? element("small", {}, "deprecated") : ""),
      element("p", { class: "quiet" }, grpc.method || "", badgeText(grpc)),
      element("div", { class: "prose" }, prose(operation.description || operation.summary)),
      others.length > 1
        ? element("label", { class: "bindings" }, "Path ", element("select", { onchange: (event) => { location.hash = `#/${encodeURIComponent(event.target.value)}`; } },
          others.map((other) => element("option", { value: other.id, selected: other.id === one.id }, `${other.http} ${other.path}`))))
        : element("p", { class: "path" }, element("span", { class: `http ${one.http.toLowerCase()}` }, one.http), " ", element("code", {}, one.path)),
      this.form, this.answer.node,
      element("section", { class: "panel", "aria-label": "Commands" }, element("h3", {}, "From a shell"), this.lines.curl.node, grpc.method && this.target ? this.lines.grpcurl.node : ""),
      this.docs(),
    ];
    this.update();
  }

  transports() {
    const { operation, grpc } = this.one;
    const found = grpc.serverStreaming
      ? Object.keys(this.replies).filter((type) => FORMATS[type]).map((type) => [type, `HTTP, ${FORMATS[type]}`]) : [["", "HTTP"]];
    if (operation["x-websocket"]) found.push(["websocket", "WebSocket"]);
    const select = element("select", { "aria-label": "How", onchange: () => this.switched() },
      found.map(([value, text]) => element("option", { value, selected: value === "websocket" && grpc.clientStreaming && grpc.serverStreaming }, text)));
    return { select, several: found.length > 1 };
  }

  get live() { return this.transport.select.value === "websocket"; }

  // The form

  fill() {
    const { one, forms } = this;
    const parts = [element("h3", {}, "Request")];
    this.values = one.parameters.map((parameter) => {
      const schema = parameter.schema || Object.values(parameter.content || {})[0]?.schema || {};
      const part = forms.labelled(parameter.name, { ...schema, description: parameter.description, deprecated: parameter.deprecated },
        { required: parameter.required, depth: 0, single: parameter.in !== "query" });
      part.parameter = parameter;
      return part;
    });
    parts.push(...this.values.map((part) => part.node));
    if (this.raw) {
      this.file = element("input", { type: "file", "aria-label": "Body" });
      parts.push(element("div", { class: "field" }, element("div", { class: "label" }, "body"), element("div", { class: "value" }, this.file)));
    } else if (this.schema) {
      parts.push(this.bodies());
    }
    this.headers = forms.rows({}, "header", () => {
      const name = element("input", { "aria-label": "Header", placeholder: "x-name", spellcheck: "false", autocomplete: "off" });
      const value = element("input", { "aria-label": "Value", placeholder: "value", spellcheck: "false", autocomplete: "off" });
      return { node: element("div", { class: "entry" }, name, value), get: () => [name.value.trim(), value.value] };
    });
    parts.push(element("div", { class: "field" }, element("div", { class: "label" }, "headers"),
      element("div", { class: "value" }, this.secretInputs(), this.headers.node, this.liveNote = element("p", { class: "help", hidden: true }, "A browser sends no headers with a WebSocket."))));
    this.call = element("button", { type: "submit", class: "primary" }, "Call");
    this.cease = element("button", { type: "button", disabled: true, onclick: () => this.stop() }, "Stop");
    this.endButton = element("button", { type: "button", hidden: true, onclick: () => { this.socket?.end(); this.state(); } }, "End requests");
    this.problem = element("p", { class: "problem", role: "alert" });
    parts.push(this.problem, element("div", { class: "buttons" }, this.call, this.endButton, this.cease,
      this.transport.several ? this.transport.select : "", element("span", { class: "quiet hint" }, "Ctrl+Enter")));
    this.form.replaceChildren(...parts);
    this.switched();
  }

  // The body, or the messages of a stream: each a form, or text.
  bodies() {
    const name = this.items ? "message" : "body";
    this.messages = [];
    const box = element("div", {});
    const add = (value) => {
      const one = this.oneBody(name, () => {
        this.messages.splice(this.messages.indexOf(one), 1);
        one.node.remove();
        changed(this.form);
      });
      if (value !== undefined) one.set(value);
      this.messages.push(one);
      box.append(one.node);
    };
    add();
    this.more = this.items ? element("button", { type: "button", class: "small", onclick: () => { add(this.messages.at(-1)?.get()); changed(this.form); } }, "+ message") : "";
    return element("div", { class: "bodies" }, box, this.more);
  }

  oneBody(name, remove) {
    const { forms } = this;
    let schema = this.schema;
    const file = Boolean(this.content["application/octet-stream"]) && forms.resolve(schema).format === "byte";
    let editor = forms.editor(schema, { depth: 0, required: true, file, files: this.files, without: this.without });
    let text = null;
    const box = element("div", {}, editor.node);
    const note = element("span", { class: "problem", role: "alert" });
    const toggle = element("button", { type: "button", class: "small", "aria-pressed": "false", onclick: () => { flip(); changed(box); } }, "JSON");
    const parse = () => { try { return text.value.trim() ? JSON.parse(text.value) : undefined; } catch (error) { throw new Mistake(`this is no JSON: ${error.message}`, text); } };
    const get = () => (text ? parse() : editor.get());
    const flip = () => {
      try {
        const value = get();
        note.textContent = "";
        if (text) { text = null; editor.set(value); box.replaceChildren(editor.node); } else {
          text = element("textarea", { class: "code", rows: 10, "aria-label": `${name} as JSON`, spellcheck: "false" });
          text.value = value === undefined || value instanceof File ? "" : JSON.stringify(value, (_, one) => one instanceof File ? undefined : one, 2);
          box.replaceChildren(text);
        }
        toggle.setAttribute("aria-pressed", String(Boolean(text)));
      } catch (error) { note.textContent = error.message; }
    };
    const set = (value) => { if (text) text.value = JSON.stringify(value, null, 2); else editor.set(value); };
    const example = this.example(schema);
    const node = element("fieldset", { class: "body" }, element("legend", {}, name, " ", element("span", { class: "type" }, forms.typeName(schema))),
      element("div", { class: "tools" }, toggle,
        example === undefined ? "" : element("button", { type: "button", class: "small", onclick: () => { set(example); changed(box); } }, "Example"),
        element("button", { type: "button", class: "small", onclick: () => { set(undefined); changed(box); } }, "Clear"),
        this.items ? element("button", { type: "button", class: "small remove", "aria-label": "Remove message", onclick: remove }, "×") : "", note), box);
    return { node, get, set };
  }

  example(schema) {
    const json = this.content["application/json"] || {};
    if (json.example !== undefined) return this.items ? json.example[0] : json.example;
    const listed = Object.values(json.examples || {})[0];
    if (listed) return this.forms.resolve(listed).value;
    const name = schema.$ref?.split("/").pop();
    const found = this.api.components?.examples?.[`${name}.sent`] || this.api.components?.examples?.[name];
    return found?.value;
  }

  secretInputs() {
    const needed = this.one.operation.security ?? this.api.security ?? [];
    const schemes = this.api.components?.securitySchemes || {};
    return [...new Set(needed.flatMap(Object.keys))].filter((name) => schemes[name]).map((name) => {
      const scheme = schemes[name];
      const input = element("input", { type: "password", autocomplete: "off", placeholder: scheme.scheme === "basic" ? "user:password" : "token",
        "aria-label": name, value: secrets[name] || "", oninput: () => { secrets[name] = input.value; } });
      const kind = scheme.name || scheme.bearerFormat || scheme.scheme || scheme.type;
      return element("label", { class: "entry" }, element("span", {}, name, " ", element("span", { class: "type" }, kind === name ? "" : kind)), input);
    });
  }

  // Headers and query parameters for what was entered as authentication; with stars in its place when it is hidden.
  proofs(hidden) {
    const needed = this.one.operation.security ?? this.api.security ?? [];
    const schemes = this.api.components?.securitySchemes || {};
    const found = { headers: [], query: [] };
    for (const name of new Set(needed.flatMap(Object.keys))) {
      const scheme = schemes[name], secret = secrets[name] && hidden ? "***" : secrets[name];
      if (!scheme || !secret) continue;
      if (scheme.type === "apiKey") {
        if (scheme.in === "header") found.headers.push([scheme.name.toLowerCase(), secret]);
        if (scheme.in === "query") found.query.push([scheme.name, secret]);
      } else {
        found.headers.push(["authorization", scheme.scheme === "basic" && !hidden ? `Basic ${btoa(secret)}` : `${scheme.scheme === "basic" ? "Basic" : "Bearer"} ${secret}`]);
      }
    }
    return found;
  }

  // What is to be sent. `strict` throws Mistake for what is not filled in; `hidden` is for the eyes of others.
  request(strict, hidden = false) {
    const { one } = this;
    const values = Object.assign({}, ...this.values.map((part) => part.get()));
    const missing = (name) => {
      if (!strict) return;
      const part = this.values.find((value) => value.parameter.name === name);
      throw new Mistake(`${name} is needed`, part?.node.querySelector("input,select,textarea"));
    };
    for (const part of this.values) if (part.parameter.required && values[part.parameter.name] === undefined) missing(part.parameter.name);
    const proofs = this.proofs(hidden);
    const path = withQuery(filled(one.path, values, one.parameters, missing), [...queryOf(one.parameters, values), ...proofs.query]);
    const messages = (this.messages || []).map((message) => message.get()).filter((value) => this.items || value !== undefined);
    const told = one.parameters.filter((parameter) => parameter.in === "header" && values[parameter.name] !== undefined)
      .map((parameter) => [parameter.name.toLowerCase(), String(values[parameter.name])]);
    const headers = [...proofs.headers, ...told, ...this.headers.rows.map((row) => row.get()).filter(([name]) => name)];
    const streaming = Boolean(one.grpc.serverStreaming);
    const accept = this.live ? "application/x-ndjson" : this.transport.select.value;
    if (streaming && accept) headers.unshift(["accept", accept]);
    const request = { method: one.http, url: new URL(path.replace(/^\//, ""), this.page.base).href, headers, streaming, values, messages };
    const whole = this.items ? undefined : messages[0];
    const form = whole && !(whole instanceof File) && Object.values(whole).some((value) => value instanceof File);
    if (this.live && (form || whole instanceof File)) throw new Mistake("a WebSocket takes no file");
    if (form) {
      request.parts = partsOf(this.forms, this.schema, whole);
      request.sent = new FormData();
      for (const [name, value] of request.parts) request.sent.append(name, value);
      request.body = "";
    } else if (this.raw || whole instanceof File) {
      const file = this.raw ? this.file.files[0] : whole;
      request.sent = file;
      request.file = file?.name || "FILE";
      request.body = "";
      request.headers.unshift(["content-type", file?.type || "application/octet-stream"]);
    } else if (this.items) {
      request.body = request.sent = messages.map((message) => JSON.stringify(message ?? {})).join("\n");
      request.headers.unshift(["content-type", "application/x-ndjson"]);
    } else if (this.schema && messages.length) {
      request.body = request.sent = JSON.stringify(messages[0]);
      request.headers.unshift(["content-type", "application/json"]);
    }
    return request;
  }

  soon() { if (!this.waiting) { this.waiting = true; requestAnimationFrame(() => { this.waiting = false; this.update(); }); } }

  update() {
    try {
      const request = this.request(false), shown = this.request(false, true);
      const line = (one) => curlLine(one, one.url.replaceAll("%7B", "{").replaceAll("%7D", "}"));
      this.problem.textContent = "";
      for (const node of this.form.querySelectorAll("[aria-invalid]")) node.removeAttribute("aria-invalid");
      this.lines.curl.set(line(shown), line(request));
      if (this.one.grpc.method && this.target) {
        const bodies = this.raw ? [{ contentType: request.sent?.type || "", data: "BASE64" }] : request.messages.map((body) => this.encoded(body));
        const messages = grpcMessages(this.one, request.values, bodies, request.headers, this.forms, this.schema);
        const plaintext = !(this.api["x-grpc-tls"] ?? location.protocol === "https:");
        this.lines.grpcurl.set(...[shown, request].map(({ headers }) => grpcurlLine(this.one, messages, headers, this.target, plaintext)));
      }
    } catch (error) {
      if (!(error instanceof Mistake)) throw error;
      this.complain(error);
    }
  }

  // A body with words in place of its files.
  encoded(body) {
    if (body instanceof File) return "BASE64";
    if (!body || typeof body !== "object" || Array.isArray(body)) return body;
    const properties = this.forms.resolve(this.schema).properties || {};
    return Object.fromEntries(Object.entries(body).map(([name, value]) => [name, !(value instanceof File) ? value
      : this.forms.resolve(properties[name]).format === "byte" ? "BASE64" : { contentType: value.type, data: "BASE64" }]));
  }

  complain(error, focus = false) {
    this.problem.textContent = error.message;
    if (error.node) { error.node.setAttribute("aria-invalid", "true"); if (focus) error.node.focus(); }
  }

  // The call

  switched() {
    const { live } = this;
    this.stop();
    this.liveNote.hidden = !live;
    this.form.classList.toggle("live", live);
    if (this.more) this.more.hidden = live;
    if (this.items && live) for (const extra of this.messages.splice(1)) extra.node.remove();
    this.state();
    if (this.lines) this.update();
  }

  state() {
    const open = this.socket?.open, sending = open && this.items && !this.socket.ended;
    this.call.textContent = !this.live ? "Call" : sending ? "Send message" : "Connect";
    this.call.disabled = Boolean(this.running) || Boolean(this.socket && !this.socket.over && !sending);
    this.endButton.hidden = !(this.live && this.items);
    this.endButton.disabled = !sending;
    this.cease.disabled = !(this.running || (this.socket && !this.socket.over));
  }

  async go() {
    if (this.call.disabled) return;
    let request;
    try { request = this.request(true); } catch (error) {
      if (!(error instanceof Mistake)) throw error;
      this.complain(error, true);
      if (!this.socket?.open) this.answer.hide();  // it is not of what is filled in now
      return;
    }
    this.problem.textContent = "";
    if (this.live) { this.overSocket(request); return; }
    this.running = new AbortController();
    this.state();
    try { await callHttp(request, this.answer, this.running.signal); } catch (error) {
      const stopped = error.name === "AbortError";
      const title = stopped ? "Stopped" : error.title || "Failed";
      const told = [stopped ? "" : error.message, this.answer.count ? this.answer.messages() : ""].filter(Boolean).join(" · ");
      this.answer.say(stopped ? "" : "bad", title, told);
    } finally {
      this.running = null;
      this.state();
    }
  }

  overSocket(request) {
    if (this.socket?.open) { this.socket.send(JSON.stringify(request.messages[0] ?? {})); return; }
    const socket = this.socket = new SocketCall(request.url.replace(/^http/, "ws"), this.answer, () => {
      if (socket.open && !socket.begun && !this.items) {  // one request, which goes at once
        socket.begun = true;
        if (request.body === undefined) socket.end(); else socket.send(request.body);
      }
      if (this.socket === socket) this.state();
    });
    this.state();
  }

  stop() {
    this.running?.abort();
    if (this.socket && !this.socket.over) this.socket.close();
  }

  // What is told of the answers

  docs() {
    const { operation } = this.one;
    const reply = this.replies["application/x-ndjson"]?.["x-itemSchema"] || this.replies["application/json"]?.schema;
    const errors = Object.entries(operation.responses || {}).filter(([status]) => !/^[23]/.test(status));
    return element("section", { class: "panel", "aria-label": "Reply" },
      element("h3", {}, "Reply ", element("span", { class: "type" }, reply ? this.forms.typeName(reply) : Object.keys(this.replies)[0] || "")),
      reply ? this.forms.tree(reply) : "",
      errors.length ? element("details", {}, element("summary", {}, "Errors"), element("table", {}, element("tbody", {}, errors.map(([status, response]) =>
        element("tr", {}, element("th", { scope: "row" }, status), element("td", {}, this.forms.resolve(response).description || "")))))) : "");
  }
}

function badgeText(grpc) {
  const told = [grpc.clientStreaming ? "streams requests" : "", grpc.serverStreaming ? "streams replies" : "",
    { NO_SIDE_EFFECTS: "no side effects", IDEMPOTENT: "safe to repeat" }[grpc.idempotency] || "",
    grpc.timeoutSeconds ? `within ${grpc.timeoutSeconds} s` : ""].filter(Boolean);
  return told.length ? ` · ${told.join(" · ")}` : "";
}

function codeLine(name) {
  const text = element("pre", { tabindex: "0", "aria-label": name });
  let whole = "";
  const copy = element("button", { type: "button", class: "small", "aria-label": `Copy ${name}`, onclick: async () => {
    try { await navigator.clipboard.writeText(whole); } catch {  // not over plain HTTP
      const shown = text.textContent;
      text.textContent = whole;
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
      getSelection().removeAllRanges();
      text.textContent = shown;
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return { node: element("div", { class: "line" }, text, copy), set: (line, copied = line) => { text.textContent = line; whole = copied; } };
}
