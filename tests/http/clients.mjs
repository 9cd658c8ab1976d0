// Calls a server with the clients of Connect and of gRPC-Web, and prints what each made of it, as JSON.
//
//     node clients.mjs FOLDER DESCRIPTORS URL
//
// FOLDER has the clients in its node_modules, DESCRIPTORS is a file with a FileDescriptorSet.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, descriptors, url] = process.argv.slice(2);
const load = createRequire(`${folder}/clients.js`);
const { create, createFileRegistry, fromBinary, toBinary, toJson } = load("@bufbuild/protobuf");
const { FileDescriptorSetSchema } = load("@bufbuild/protobuf/wkt");
const { Code, ConnectError, createClient } = load("@connectrpc/connect");
const { createConnectTransport, createGrpcWebTransport } = load("@connectrpc/connect-node");
globalThis.XMLHttpRequest = load("xhr2").XMLHttpRequest;
const { GrpcWebClientBase, MethodDescriptor, MethodType } = load("grpc-web");

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const library = registry.getService("lab.v1.Library");
const reason = registry.getMessage("google.rpc.ErrorInfo");
const { getBook, watch, collect } = library.method;

function told(error) {
  const found = ConnectError.from(error);
  return {
    code: Code[found.code],
    message: found.rawMessage,
    reasons: found.findDetails(reason).map((detail) => detail.reason),
    why: found.metadata.get("x-why"),
  };
}

async function caught(call) {
  try {
    return await call();
  } catch (error) {
    return told(error);
  }
}

async function connect(transport) {
  const client = createClient(library, transport);
  const titles = async (request) => {
    const seen = [];
    const failed = await caught(async () => {
      for await (const book of client.watch(request)) seen.push(book.title);
    });
    return failed ? [seen, failed] : seen;
  };
  async function* lines() {
    yield { text: "a" };
    yield { text: "b" };
  }
  return {
    unary: toJson(getBook.output, await client.getBook({ name: "ü" })),
    large: (await client.getBook({ name: "x", big: true })).tags.length,
    stream: await titles({ shelf: "s", count: 3 }),
    upload: (await client.collect(lines())).texts,
    error: await caught(() => client.getBook({ name: "fail" })),
    late: await titles({ shelf: "s", count: 3, failAt: 2 }),
    slow: (await caught(() => client.getBook({ name: "hang" }, { timeoutMs: 200 }))).code,
  };
}

function path(method) {
  return `${url}/${library.typeName}/${method.name}`;
}

function described(method, kind) {
  const write = (request) => toBinary(method.input, create(method.input, request));
  return new MethodDescriptor(path(method), kind, Object, Object, write, (raw) => fromBinary(method.output, raw));
}

async function grpcWeb(format) {
  const client = new GrpcWebClientBase({ format });
  const call = (name) => client.unaryCall(path(getBook), { name }, {}, described(getBook, MethodType.UNARY));
  const stream = (request) =>
    new Promise((resolve) => {
      const seen = [];
      const reading = client.serverStreaming(path(watch), request, {}, described(watch, MethodType.SERVER_STREAMING));
      reading.on("data", (book) => seen.push(book.title));
      reading.on("error", (error) => resolve([seen, { code: error.code, message: error.message }]));
      reading.on("end", () => resolve(seen));
    });
  const failed = await call("fail").catch((error) => error);
  return {
    unary: toJson(getBook.output, await call("ü")),
    error: { code: failed.code, message: failed.message, why: failed.metadata["x-why"] },
    ...(format === "text" && {
      stream: await stream({ shelf: "s", count: 3 }),
      late: await stream({ shelf: "s", count: 3, failAt: 2 }),
    }),
  };
}

const at = { baseUrl: url, httpVersion: "1.1" };
console.log(
  JSON.stringify({
    "connect json": await connect(createConnectTransport({ ...at, useBinaryFormat: false })),
    "connect proto": await connect(createConnectTransport({ ...at, useBinaryFormat: true })),
    "connect get": await connect(createConnectTransport({ ...at, useBinaryFormat: false, useHttpGet: true })),
    "connect grpc-web": await connect(createGrpcWebTransport(at)),
    "grpc-web text": await grpcWeb("text"),
    "grpc-web binary": await grpcWeb("binary"),
  }),
);
process.exit(0);
