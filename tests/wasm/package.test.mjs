// The npm package in Node: EDGEBERT_NPM is its folder, EDGEBERT_CASES one with model files and what the native library
// answers, by tests/test_wasm.py; EDGEBERT_ISA the binary.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

const { EdgeBertError, load, search, similarity } = await import(`${process.env.EDGEBERT_NPM}/index.js`);
const folder = process.env.EDGEBERT_CASES;
const cases = JSON.parse(await readFile(`${folder}/cases.json`, "utf8"));
const file = (task) => `${folder}/${task}.onnx`;

const plain = (value) => {
  if (ArrayBuffer.isView(value)) return Array.from(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
  return value;
};

async function refused(promise, code, pattern) {
  const error = await promise.then(
    () => assert.fail(`expected ${code}`),
    (reason) => reason,
  );
  assert.ok(error instanceof EdgeBertError, String(error?.stack));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, pattern);
  assert.ok(error.advice.length > 10);
}

const isa = process.env.EDGEBERT_ISA;
for (const worker of isa === "wasm_simd128" ? [false, 2] : [false]) {
  for (const { name, task, options, calls } of cases.models) {
    test(`${name} on ${isa}, ${worker || "no"} workers: the native library's answers`, async () => {
      const model = await load(file(name), { isa, worker, ...options });
      assert.equal(model.isa, isa);
      assert.equal(model.task, task);
      for (const { method, args, expected } of calls) {
        assert.deepEqual(plain(await model[method](...args)), expected, `${method} ${JSON.stringify(args.slice(1))}`);
      }
      await model.dispose();
    });
  }
}

test("one input gives one answer, from a path, a file URL, bytes and a Blob", async () => {
  const bytes = await readFile(file("embedding"));
  const [expected] = cases.models.find(({ name }) => name === "embedding").calls[0].expected;
  const [text] = cases.models[0].calls[0].args[0];
  for (const source of [
    file("embedding"),
    new URL(`file://${file("embedding")}`),
    bytes,
    bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
    new Blob([bytes]),
  ]) {
    const model = await load(source);
    assert.deepEqual(plain(await model.embed(text)), expected);
    assert.deepEqual(await model.embed([]), []);
    assert.ok((await model.memoryBytes()) >= 65536);
    await model.dispose();
  }
});

test("by HTTP, with progress, a hash and a signal", async () => {
  const bytes = await readFile(file("embedding"));
  const server = createServer((request, response) => {
    if (request.url === "/missing") response.writeHead(404).end();
    else if (request.url === "/slow") response.writeHead(200).write(bytes.subarray(0, 100));
    else response.writeHead(200, { "content-length": bytes.length }).end(bytes);
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const at = `http://127.0.0.1:${server.address().port}`;
  try {
    const seen = [];
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    const model = await load(`${at}/model`, { sha256, onProgress: (progress) => seen.push(progress) });
    assert.deepEqual(seen.at(-1), { loaded: bytes.length, total: bytes.length });
    await model.dispose();
    await refused(load(`${at}/model`, { sha256: sha256.replace(/./g, "0") }), "wrong-hash", /SHA-256/);
    await refused(load(`${at}/missing`), "download", /404/);
    await refused(load("http://127.0.0.1:1/model"), "download", /127\.0\.0\.1:1/);
    const controller = new AbortController();
    const loading = load(`${at}/slow`, { signal: controller.signal, onProgress: () => controller.abort() });
    await assert.rejects(loading, { name: "AbortError" });
    await assert.rejects(load(`${at}/model`, { signal: AbortSignal.abort() }), { name: "AbortError" });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test("bad files and bad calls are named", async () => {
  const bytes = await readFile(file("embedding"));
  for (const worker of [false, true]) {
    await refused(load(bytes.subarray(0, bytes.length - 100), { worker }), "model-format", /./);
    await refused(load(bytes.subarray(0, 0), { worker }), "model-format", /empty/);
    await refused(load(new TextEncoder().encode("<!doctype html><title>404</title>"), { worker }), "model-format", /./);
    await refused(
      load(file("silent"), { worker }).then((model) => model.embed("a")),
      "unsupported",
      /tokenizer/,
    );
    await refused(load(bytes, { worker, publicKey: "00".repeat(32) }), "model-format", /./);
    const model = await load(bytes, { worker });
    await refused(model.classify("a"), "invalid-input", /^classify does not fit this file: its head is embedding/);
    await refused(model.embed("a", { promptName: "nobody's" }), "invalid-input", /nobody's/);
    await refused(model.embed("a", { promptName: "a\0b" }), "invalid-input", /NUL/);
    await refused(model.embed(["a", 1]), "invalid-input", /text 1 is 1/);
    await refused(model.embed("a", { width: 10_000 }), "invalid-input", /./);
    assert.ok((await model.embed("a")).length > 0, "after a refused call the model still works");
    await model.dispose();
    await model.dispose();
    await refused(model.embed("a"), "disposed", /disposed/);
  }
  await refused(load(file("embedding"), { sha256: "abc" }), "invalid-input", /sha256 is abc/);
  await refused(load(file("embedding"), { isa: "avx2" }), "invalid-input", /isa is avx2/);
  await refused(load(file("embedding"), { sha265: "00".repeat(32) }), "invalid-input", /no option sha265/);
  await refused(load(file("embedding"), { worker: -1 }), "invalid-input", /worker is -1/);
  await refused(load(), "invalid-input", /source is undefined/);
  await refused(load(file("embedding"), { longTexts: "never" }), "invalid-input", /longTexts is never/);
  await refused(load(`${folder}/nothing.onnx`), "file", /nothing\.onnx/);
  await refused(load("data:text/plain"), "download", /text\/plain/);
});

test("an engine without SIMD, and no memory", async (t) => {
  t.mock.method(WebAssembly, "validate", () => false);
  await refused(load(file("embedding")), "no-simd", /SIMD/);
  t.mock.restoreAll();
  t.mock.method(WebAssembly, "instantiate", () => Promise.reject(new RangeError("could not allocate memory")));
  await refused(load(file("embedding")), "out-of-memory", /could not allocate/);
});

test("calls that wait are dropped when their signal says so", async () => {
  const model = await load(file("embedding"), { worker: true });
  const controller = new AbortController();
  const first = model.embed("a"),
    second = model.embed("b", { signal: controller.signal }),
    third = model.embed("c");
  controller.abort();
  await assert.rejects(second, { name: "AbortError" });
  assert.equal((await first).length, (await third).length);
  const waiting = refused(model.embed("d"), "disposed", /disposed/);
  await model.dispose();
  await waiting;
});

test("dispose gives the memory back", async (t) => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc");
  const memories = [];
  const { instantiate } = WebAssembly;
  t.after(() => (WebAssembly.instantiate = instantiate));
  WebAssembly.instantiate = async (...args) => {
    // a mock would keep what it returned
    const instance = await instantiate(...args);
    memories.push(new WeakRef(instance.exports.memory));
    return instance;
  };
  const kept = await load(file("embedding"));
  for (let i = 0; i < 3; ++i) {
    const model = await load(file("embedding"));
    await model.embed("a");
    await model.dispose();
  }
  for (let i = 0; i < 20 && memories.filter((one) => one.deref()).length > 1; ++i) {
    await setTimeout(10);
    collect();
  }
  assert.deepEqual(
    memories.map((one) => one.deref() !== undefined),
    [true, false, false, false],
  );
  await kept.dispose();
});

test("similarity and search", () => {
  const [a, b, c] = [
    [1, 0],
    [1, 1],
    [-2, 0],
  ].map((row) => Float32Array.from(row));
  assert.equal(similarity(a, c), -1);
  assert.deepEqual(
    search(a, [c, b, a], { topK: 2 }).map(({ index }) => index),
    [2, 1],
  );
  assert.equal(similarity(a, Float32Array.of(0, 0)), 0);
  assert.throws(() => similarity(a, Float32Array.of(1)), EdgeBertError);
  assert.throws(() => similarity([a, b], [a, b]), EdgeBertError);
});
