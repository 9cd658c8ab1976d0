// Forms made from JSON Schema. An editor is {node, get, set}: `get` gives undefined for what is left out, and throws
// Mistake for what is no value. Nested messages are made when they are added, so that recursive ones end.

class Mistake extends Error {
  constructor(message, node) { super(message); this.node = node; }
}

let unique = 0;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function changed(node) { node.dispatchEvent(new Event("input", { bubbles: true })); }

// A line with `code`, *stress*, **more of it** and links, as nodes.
function inline(line) {
  const pattern = /(`[^`]+`|\*\*[^*\s][^*]*\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\(https?:[^)\s]+\)|https?:\/\/[^\s<>"')\]]+)/;
  return (line || "").split(pattern).map((part) => {
    const link = /^\[([^\]]+)\]\((.+)\)$/.exec(part) || (/^https?:\/\//.test(part) ? [part, part, part] : null);
    if (link) return element("a", { href: link[2], rel: "noreferrer" }, link[1]);
    if (/^`.+`$/s.test(part)) return element("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/s.test(part)) return element("strong", {}, part.slice(2, -2));
    return /^\*.+\*$/s.test(part) ? element("em", {}, part.slice(1, -1)) : part;
  });
}

// Text as comments of proto files have it: paragraphs and lists.
function prose(text) {
  const blocks = [];
  let list = null, lines = [];
  const end = () => {
    if (lines.length) blocks.push(element("p", {}, inline(lines.join("\n"))));
    if (list) blocks.push(element("ul", {}, list.map((item) => element("li", {}, inline(item)))));
    lines = [];
    list = null;
  };
  for (const line of (text || "").split("\n")) {
    const item = /^\s*[-*] +(.*)$/.exec(line);
    if (!line.trim()) end();
    else if (item) { if (!list) { end(); list = []; } list.push(item[1]); }
    else if (list && /^\s/.test(line)) list[list.length - 1] += ` ${line.trim()}`;
    else { if (list) end(); lines.push(line); }
  }
  end();
  return blocks;
}

class Forms {
  constructor(api) { this.api = api; }

  // A schema without its reference; what stands beside the reference counts more.
  resolve(schema) {
    let found = schema || {};
    for (let depth = 0; found.$ref && depth < 20; depth++) {
      const target = found.$ref.replace(/^#\//, "").split("/")
        .reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], this.api) || {};
      const { $ref, ...beside } = found;
      found = { ...target, ...beside, name: found.name || $ref.split("/").pop() };
    }
    if (found.anyOf) {  // with null, or a number with the words that JSON has no number for
      const others = found.anyOf.filter((one) => one.type !== "null");
      if (others.length === 1 && others.length < found.anyOf.length) {
        const { anyOf, ...beside } = found;
        return { ...this.resolve(others[0]), ...beside, nullable: true };
      }
      const number = others.find((one) => one.type === "number");
      if (number) return { ...found, ...number, words: others.flatMap((one) => one.enum || []) };
    }
    if (Array.isArray(found.type)) {
      return { ...found, type: found.type.find((one) => one !== "null"), nullable: found.type.includes("null") };
    }
    return found;
  }

  kind(schema) {
    if (schema.enum) return "enum";
    if (schema.type === "array") return "list";
    if (schema.type === "object" && schema.properties && schema.additionalProperties !== true) return "message";
    if (schema.type === "object" && typeof schema.additionalProperties === "object") return "map";
    if (schema.type === "object" && schema.additionalProperties !== true) return "message";
    if (["integer", "number", "string", "boolean", "null"].includes(schema.type)) return schema.type;
    return "json";
  }

  typeName(schema) {
    const found = this.resolve(schema);
    const short = (name) => name.split(".").pop();
    switch (this.kind(found)) {
      case "list": return `${this.typeName(found.items)}[]`;
      case "map": return `map of ${this.typeName(found.additionalProperties)}`;
      case "message": return short(found.name || found.title || "object");
      case "enum": return found.name ? short(found.name) : "enum";
      case "json": return found.type === "object" ? "JSON object" : "any JSON";
      default: return found.format || found.type;
    }
  }

  editor(schema, where = {}) {
    const found = this.resolve(schema);
    const kind = this.kind(found);
    const make = { enum: "choice", boolean: "choice", null: "choice", list: "list", map: "map", message: "message", json: "json" };
    if (where.file) return this.orFile(kind === "message" ? null : this.text(found, where), where);
    return this[make[kind] || "text"](found, { depth: 0, ...where });
  }

  // A value, or a file instead; only a file when there is no editor for the value.
  orFile(one, where) {
    const file = element("input", { type: "file", id: one ? undefined : where.id, "aria-label": `${where.name || "body"} from a file` });
    return {
      node: element("div", { class: "or-file" }, one?.node, file),
      get: () => file.files[0] ?? one?.get(),
      set: (value) => { file.value = ""; one?.set(value); },
    };
  }

  // One value

  text(schema, where) {
    const numeric = schema.type === "integer" || schema.type === "number";
    const hints = { "date-time": "2030-01-02T03:04:05Z", "google-duration": "1.5s", byte: "base64",
      "google-fieldmask": "name,other.field", int64: "0", uint64: "0" };
    const long = schema.type === "string" && !schema.format && !where.single;
    const input = element(long ? "textarea" : "input", {
      id: where.id, rows: long ? 1 : undefined, autocomplete: "off", spellcheck: "false",
      inputmode: numeric ? "decimal" : undefined, placeholder: hints[schema.format] || (numeric ? "0" : ""),
      "aria-describedby": where.describedby, "aria-label": where.label,
    });
    return {
      node: input,
      get: () => {
        const text = input.value;
        if (text === "") return undefined;
        if (!numeric) return long ? text : text.trim();
        if (schema.words?.includes(text.trim())) return text.trim();
        const number = Number(text);
        if (Number.isNaN(number) || (schema.type === "integer" && !Number.isInteger(number))) {
          throw new Mistake(`${text} is no ${schema.type === "integer" ? "whole " : ""}number`, input);
        }
        return number;
      },
      set: (value) => { input.value = value ?? ""; },
    };
  }

  choice(schema, where) {
    const values = schema.enum || (schema.type === "boolean" ? [true, false] : [null]);
    const told = schema["x-enum-descriptions"] || [];
    const select = element("select", { id: where.id, "aria-describedby": where.describedby, "aria-label": where.label },
      element("option", { value: "" }, "–"),
      values.map((value, at) => element("option", { value: String(at), title: told[at] }, String(value))));
    return {
      node: select,
      get: () => select.value === "" ? undefined : values[Number(select.value)],
      set: (value) => { select.value = values.includes(value) ? String(values.indexOf(value)) : ""; },
    };
  }

  json(schema, where) {
    const input = element("textarea", { id: where.id, rows: 3, class: "code", spellcheck: "false", placeholder: "JSON",
      "aria-describedby": where.describedby, "aria-label": where.label });
    return {
      node: input,
      get: () => {
        if (!input.value.trim()) return undefined;
        try { return JSON.parse(input.value); } catch (error) { throw new Mistake(`this is no JSON: ${error.message}`, input); }
      },
      set: (value) => { input.value = value === undefined ? "" : JSON.stringify(value, null, 2); },
    };
  }

  // Several

  rows(where, noun, make) {
    const rows = [];
    const box = element("div", { class: "rows" });
    const add = (value) => {
      const row = make(value);
      const remove = element("button", { type: "button", class: "small", "aria-label": `Remove ${noun}`, title: `Remove ${noun}`,
        onclick: () => { rows.splice(rows.indexOf(row), 1); line.remove(); more.focus(); changed(box); } }, "×");
      const line = element("div", { class: "row" }, row.node, remove);
      row.line = line;
      rows.push(row);
      box.append(line);
      return row;
    };
    const more = element("button", { type: "button", id: where.id, class: "small", "aria-describedby": where.describedby,
      "aria-label": `Add ${noun === "entry" && where.name ? `to ${where.name}` : noun}`,
      onclick: () => { const row = add(); changed(box); row.line.querySelector("input,select,textarea,button")?.focus(); } },
      `+ ${noun}`);
    const node = element("div", { class: "many" }, box, more);
    return { node, rows, add, clear: () => { rows.length = 0; box.replaceChildren(); } };
  }

  list(schema, where) {
    const name = where.name || "item";
    const held = this.rows(where, name, (value) => {
      const one = this.editor(schema.items, { depth: where.depth + 1, label: name, required: true });
      if (value !== undefined) one.set(value);
      return one;
    });
    return {
      node: held.node,
      get: () => held.rows.length ? held.rows.map((row) => row.get() ?? this.zero(schema.items)) : undefined,
      set: (value) => { held.clear(); for (const one of Array.isArray(value) ? value : []) held.add(one); },
    };
  }

  map(schema, where) {
    const held = this.rows(where, "entry", (entry) => {
      const key = element("input", { "aria-label": "key", placeholder: "key", spellcheck: "false" });
      const one = this.editor(schema.additionalProperties, { depth: where.depth + 1, label: "value", required: true });
      if (entry) { key.value = entry[0]; one.set(entry[1]); }
      return { node: element("div", { class: "entry" }, key, one.node), key: () => key.value, get: one.get };
    });
    return {
      node: held.node,
      get: () => held.rows.length
        ? Object.fromEntries(held.rows.map((row) => [row.key(), row.get() ?? this.zero(schema.additionalProperties)]))
        : undefined,
      set: (value) => { held.clear(); for (const entry of Object.entries(value || {})) held.add(entry); },
    };
  }

  // What stands for an element of a list that is left empty: there it cannot be left out.
  zero(schema) {
    const found = this.resolve(schema);
    return { enum: found.enum?.[0], list: [], map: {}, message: {}, integer: 0, number: 0, boolean: false, json: null, null: null }[
      this.kind(found)] ?? (["int64", "uint64"].includes(found.format) ? "0" : this.kind(found) === "string" ? "" : null);
  }

  // A message: the outermost and required ones are there, others when they are added.
  message(schema, where) {
    if (where.depth === 0 || (where.required && where.depth < 4)) return this.fields(schema, where);
    const box = element("div", { class: "nested" });
    let inner = null;
    const add = element("button", { type: "button", id: where.id, class: "small", "aria-describedby": where.describedby,
      "aria-label": `Add ${where.name || this.typeName(schema)}`,
      onclick: () => { put({}); changed(box); box.querySelector("input,select,textarea,button")?.focus(); } },
      `+ ${where.name || this.typeName(schema)}`);
    const take = () => { inner = null; box.replaceChildren(add); };
    const put = (value) => {
      inner = this.fields(schema, where);
      inner.set(value);
      const remove = element("button", { type: "button", class: "small", "aria-label": `Remove ${where.name || this.typeName(schema)}`,
        onclick: () => { take(); changed(box); add.focus(); } }, "− remove");
      box.replaceChildren(inner.node, remove);
    };
    take();
    return {
      node: box,
      get: () => inner ? inner.get() ?? {} : undefined,
      set: (value) => { if (value === undefined || value === null) take(); else put(value); },
    };
  }

  fields(schema, where) {
    const without = where.without || [];  // what the path sets is not asked for again
    const properties = Object.entries(schema.properties || {})
      .filter(([name, one]) => !this.resolve(one).readOnly && !without.includes(name));
    const inside = (name) => ({ depth: where.depth + 1, file: where.files?.has(name),
      without: without.filter((path) => path.startsWith(`${name}.`)).map((path) => path.slice(name.length + 1)) });
    const required = new Set(schema.required || []);
    const oneofs = schema["x-oneofs"] || {};
    const oneofOf = Object.fromEntries(Object.entries(oneofs).flatMap(([name, fields]) => fields.map((field) => [field, name])));
    const parts = [];
    const done = new Set();
    const node = element("div", { class: "fields" });
    for (const [name, one] of properties) {
      const oneof = oneofOf[name];
      if (oneof && done.has(oneof)) continue;
      done.add(oneof);
      const part = oneof
        ? this.oneof(oneof, properties.filter(([field]) => oneofOf[field] === oneof), inside)
        : this.labelled(name, one, { required: required.has(name), ...inside(name) });
      parts.push(part);
      node.append(part.node);
    }
    if (!parts.length) node.append(element("p", { class: "quiet" }, "No fields."));
    return {
      node,
      get: () => {
        const found = Object.assign({}, ...parts.map((part) => part.get()));
        return Object.keys(found).length || where.depth === 0 || where.required ? found : undefined;
      },
      set: (value) => { for (const part of parts) part.set(value || {}); },
    };
  }

  // A field with its name and what is said of it; gives and takes a message with that field.
  labelled(name, schema, where) {
    const found = this.resolve(schema);
    const id = `f${++unique}`;
    const text = schema.description ?? (schema.$ref ? "" : found.description);
    const one = this.editor(schema, { ...where, required: where.required || where.chosen, id, name, describedby: text ? `${id}d` : undefined });
    const node = element("div", { class: "field" },
      element("div", { class: "label" },
        element("label", { for: id, class: found.deprecated ? "deprecated" : undefined }, name),
        where.required ? element("span", { class: "required", title: "required" }, "required") : "",
        element("span", { class: "type" }, this.typeName(schema))),
      element("div", { class: "value" }, one.node,
        text ? element("div", { class: "help", id: `${id}d` }, prose(text)) : ""));
    return {
      node,
      get: () => { const value = one.get(); return value === undefined ? {} : { [name]: value }; },
      set: (message) => one.set(message[name]),
    };
  }

  oneof(name, properties, inside) {
    const id = `f${++unique}`;
    const box = element("div", {});
    let part = null;
    const select = element("select", { id, onchange: () => choose(select.value) },
      element("option", { value: "" }, "– none –"), properties.map(([field]) => element("option", {}, field)));
    const choose = (field) => {
      select.value = field;
      const found = properties.find(([one]) => one === field);
      part = found ? this.labelled(found[0], found[1], { ...inside(field), chosen: true }) : null;
      box.replaceChildren(...(part ? [part.node] : []));
    };
    const zero = (field) => this.zero(properties.find(([one]) => one === field)[1]);
    return {
      node: element("div", { class: "field oneof" },
        element("div", { class: "label" }, element("label", { for: id }, name), element("span", { class: "type" }, "one of")),
        element("div", { class: "value" }, select, box)),
      get: () => {
        if (!part) return {};
        const found = part.get();
        return Object.keys(found).length ? found : { [select.value]: zero(select.value) };
      },
      set: (message) => {
        const field = properties.map(([one]) => one).find((one) => message[one] !== undefined);
        choose(field || "");
        part?.set(message);
      },
    };
  }

  // What a message holds, to read; what is inside opens when it is asked for.
  tree(schema, outer = []) {
    const found = this.resolve(schema);
    const kind = this.kind(found);
    if (kind === "list") return this.tree(found.items, outer);
    if (kind === "map") return this.tree(found.additionalProperties, outer);
    if (kind === "enum") {
      const told = found["x-enum-descriptions"] || [];
      return element("ul", { class: "tree" }, found.enum.map((value, at) =>
        element("li", {}, element("code", {}, String(value)), told[at] ? element("div", { class: "help" }, prose(told[at])) : "")));
    }
    if (kind !== "message" || !found.properties) return element("p", { class: "quiet" }, this.typeName(schema));
    return element("ul", { class: "tree" }, Object.entries(found.properties).map(([name, one]) => {
      const inner = this.resolve(one);
      const deeper = this.opens(one);
      const text = one.description ?? (one.$ref ? "" : inner.description);
      const label = [element("code", { class: inner.deprecated ? "deprecated" : undefined }, name), " ",
        element("span", { class: "type" }, this.typeName(one))];
      const more = element("details", {}, element("summary", {}, label));
      more.addEventListener("toggle", () => { if (more.open && more.childElementCount === 1) more.append(this.tree(one)); });
      return element("li", {}, deeper ? more : label, text ? element("div", { class: "help" }, prose(text)) : "");
    }));
  }

  opens(schema) {
    const found = this.resolve(schema);
    const kind = this.kind(found);
    if (kind === "list") return this.opens(found.items);
    if (kind === "map") return this.opens(found.additionalProperties);
    return kind === "enum" || (kind === "message" && Boolean(found.properties));
  }
}
