// The page: a list of methods, and one of them at a time.

const byId = (id) => document.getElementById(id);
const VERBS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

function operationsOf(api) {
  const found = [];
  for (const [path, item] of Object.entries(api.paths || {})) {
    const several = [...VERBS.filter((verb) => item[verb]).map((verb) => [verb.toUpperCase(), item[verb]]),
      ...Object.entries(item["x-additionalOperations"] || {})];
    for (const [http, operation] of several) {
      const grpc = operation["x-grpc"] || {};
      found.push({ id: operation.operationId || `${http} ${path}`, http, path, operation, grpc, tag: operation.tags?.[0] || "other",
        name: grpc.method?.split("/").pop() || operation.operationId || path,
        parameters: [...(item.parameters || []), ...(operation.parameters || [])] });
    }
  }
  const orders = Object.fromEntries((api.tags || []).map((tag) => [tag.name, tag["x-methods"] || []]));
  const place = (one) => orders[one.tag]?.indexOf(one.name) ?? -1;
  return found.sort((one, other) => place(one) - place(other));  // as declared; paths put others together
}

class Page {
  constructor(api, source) {
    this.api = api;
    this.source = source;
    this.forms = new Forms(api);
    this.operations = operationsOf(api);
    const server = api.servers?.[0]?.url;
    const base = new URL(server && !server.includes("{") ? server.replace(/\/*$/, "/") : ".", source);
    this.base = base.origin === location.origin ? base : new URL(".", source);  // it calls nobody else
    document.title = api.info?.title || "API";
    byId("home").textContent = document.title;
    byId("version").textContent = api.info?.version || "";
    this.list();
    byId("filter").addEventListener("input", () => this.filter());
    byId("filter").addEventListener("keydown", (event) => {
      const first = [...byId("list").querySelectorAll("li:not([hidden]) a")].find((link) => link.offsetParent);
      if (event.key === "Enter" && first) { first.click(); this.menu(false); byId("main").focus({ preventScroll: true }); }
    });
    addEventListener("hashchange", () => this.route());
    addEventListener("keydown", (event) => {
      const typing = /INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName || "");
      if (event.key === "/" && !typing) { event.preventDefault(); this.menu(true); byId("filter").focus(); }
      if (event.key === "Escape") this.menu(false);
    });
    byId("menu").addEventListener("click", () => this.menu(byId("menu").getAttribute("aria-expanded") !== "true"));
    this.route();
  }

  menu(open) {
    byId("menu").setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("menu-open", open);
  }

  // The list on the left: methods of each service, with their first rule.

  list() {
    const methods = new Map();
    for (const one of this.operations) {
      const key = one.grpc.method || one.id;
      if (!methods.has(key)) methods.set(key, one);
    }
    const tags = [...new Set([...(this.api.tags || []).map((tag) => tag.name), ...this.operations.map((one) => one.tag)])];
    byId("list").replaceChildren(...tags.map((tag) => {
      const own = [...methods.values()].filter((one) => one.tag === tag);
      return element("details", { open: true, class: "service" }, element("summary", { title: tag }, tag.split(".").pop(),
        element("small", {}, tag.split(".").slice(0, -1).join("."))),
        element("ul", {}, own.map((one) => element("li", { "data-find": `${tag} ${one.name} ${one.path}`.toLowerCase() },
          element("a", { href: `#/${encodeURIComponent(one.id)}`, class: one.operation.deprecated ? "deprecated" : undefined,
            title: `${one.http} ${one.path}` }, element("span", { class: "name" }, one.name), badge(one))))));
    }));
  }

  filter() {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of byId("list").querySelectorAll("li")) {
      line.hidden = !words.every((word) => line.dataset.find.includes(word));
    }
    for (const service of byId("list").querySelectorAll(".service")) {
      service.hidden = ![...service.querySelectorAll("li")].some((line) => !line.hidden);
    }
    byId("none").textContent = byId("list").querySelector("li:not([hidden])") ? "" : "No method has that in its name or path.";
  }

  route() {
    this.leave?.();
    this.leave = null;
    const id = decodeURIComponent(location.hash.replace(/^#\//, ""));
    const one = this.operations.find((operation) => operation.id === id);
    for (const link of byId("list").querySelectorAll("a")) {
      const here = this.operations.find((operation) => `#/${encodeURIComponent(operation.id)}` === link.getAttribute("href"));
      const current = Boolean(one && here && (here.id === one.id || (one.grpc.method && here.grpc.method === one.grpc.method)));
      if (current) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    const main = byId("main");
    main.replaceChildren(...(one ? this.method(one) : this.start()));
    main.scrollTop = 0;
    document.title = [one?.name, this.api.info?.title || "API"].filter(Boolean).join(" · ");
    if (one) { this.menu(false); main.focus({ preventScroll: true }); scrollTo(0, 0); }
  }

  start() {
    const yaml = this.source.href.replace(/\.json$/, ".yaml");
    const told = Object.fromEntries((this.api.tags || []).map((tag) => [tag.name, tag.description]));
    return [element("h1", {}, this.api.info?.title || "API"), ...prose(this.api.info?.description),
      element("p", {}, "OpenAPI: ", element("a", { href: this.source.href }, "JSON"), " · ", element("a", { href: yaml }, "YAML")),
      ...[...new Set(this.operations.map((one) => one.tag))].map((tag) => element("section", { class: "panel" },
        element("h2", {}, tag), prose(told[tag]),
        element("ul", { class: "index" }, this.operations.filter((one) => one.tag === tag).map((one) => element("li", {},
          element("a", { href: `#/${encodeURIComponent(one.id)}` }, element("span", { class: `http ${one.http.toLowerCase()}` }, one.http), " ",
            element("code", { class: one.operation.deprecated ? "deprecated" : undefined }, one.path)),
          element("span", { class: "quiet" }, " ", inline(one.operation.summary)))))))];
  }

  // One method

  method(one) {
    const view = new MethodView(this, one);
    this.leave = () => view.stop();
    return view.nodes;
  }
}

function badge(one) {
  const kind = one.grpc.clientStreaming && one.grpc.serverStreaming ? ["⇄", "streams both ways"]
    : one.grpc.clientStreaming ? ["⇉", "streams requests"] : one.grpc.serverStreaming ? ["⇇", "streams replies"] : null;
  return element("span", { class: "badges" }, kind ? element("span", { class: "stream", title: kind[1], "aria-label": kind[1] }, kind[0]) : "",
    element("span", { class: `http ${one.http.toLowerCase()}` }, one.http));
}

(async () => {
  const source = new URL(document.documentElement.dataset.openapi, location.href);
  try {
    const response = await fetch(source, { credentials: "same-origin" }).catch(broken("", "the server cannot be reached"));
    if (!response.ok) throw new Error(`it answers ${response.status}`);
    new Page(await response.json(), source);
  } catch (error) {
    byId("main").replaceChildren(element("p", { class: "problem", role: "alert" }, `${source.pathname} cannot be shown: ${error.message}`));
    throw error;
  }
})();
