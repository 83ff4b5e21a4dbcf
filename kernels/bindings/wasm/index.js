// What apps import: loading, the model, and arithmetic on embeddings. index.d.ts is the reference.
import { Engine } from "./engine.js";
import { EdgeBertError } from "./error.js";

export { EdgeBertError };

const isNode = globalThis.process?.versions?.node !== undefined;
const fromNode = (name) => import(/* @vite-ignore */ `node:${name}`);

// The binaries, best first. An engine that lacks an instruction of a binary refuses all of it, so it is asked with a
// function of a few bytes whose answer is known: V8 11.3 (Node 20 with its flag) has a relaxed dot product that is wrong.
const ZEROS = [0x41, 0x00, 0xfd, 0x0f]; // a vector of bytes
const MINUS_ONES = [0x41, 0x7f, 0xfd, 0x0f];
const ONES = [0x41, 0x01, 0xfd, 0x0f];
const FIRST = [0xfd, 0x1b, 0x00]; // its first 32 bits
const BINARIES = {
  wasm_relaxed_simd: {
    url: () => new URL("./wasm_relaxed_simd.wasm", import.meta.url),
    probe: [...MINUS_ONES, ...ONES, ...MINUS_ONES, 0xfd, 0x93, 0x02, ...FIRST], // 4 * -1 * 1 - 1
    answer: -5,
  },
  wasm_simd128: {
    url: () => new URL("./wasm_simd128.wasm", import.meta.url),
    probe: [...ZEROS, ...FIRST],
    answer: 0,
  },
};

function runs({ probe, answer }) {
  const body = [0, ...probe, 0x0b];
  const types = [1, 5, 1, 0x60, 0, 1, 0x7f],
    functions = [3, 2, 1, 0],
    exported = [7, 5, 1, 1, 0x66, 0, 0]; // as f
  const code = [10, body.length + 2, 1, body.length, ...body];
  const bytes = Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, ...types, ...functions, ...exported, ...code);
  return WebAssembly.validate(bytes) && new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.f() === answer;
}

const ENGINE_OPTIONS = ["publicKey", "maxLength", "longTexts", "stride", "fullDepth"];

export async function load(source, options = {}) {
  const { onProgress, signal, sha256, worker = !isNode, isa, ...rest } = options;
  const refuse = (message) => {
    throw new EdgeBertError("invalid-input", message);
  };
  const odd = Object.keys(rest).find((name) => !ENGINE_OPTIONS.includes(name));
  if (odd !== undefined) refuse(`load has no option ${odd}`); // a hash that is misspelt would not be checked
  if (typeof worker !== "boolean" && !(Number.isInteger(worker) && worker >= 0))
    refuse(`worker is ${worker}, expected true, false or how many`);
  if (isa !== undefined && !(isa in BINARIES))
    refuse(`isa is ${isa}, expected one of ${Object.keys(BINARIES).join(", ")}`);
  signal?.throwIfAborted();
  for (const [name, digits] of [
    ["sha256", sha256],
    ["publicKey", rest.publicKey],
  ]) {
    if (digits !== undefined && !/^[0-9a-f]{64}$/i.test(digits))
      refuse(`${name} is ${digits}, expected 64 hexadecimal digits`);
  }
  const usable = Object.keys(BINARIES).filter((name) => runs(BINARIES[name]));
  if (usable.length === 0) throw new EdgeBertError("no-simd", "this JavaScript engine has no WebAssembly SIMD");
  if (isa !== undefined && !usable.includes(isa))
    throw new EdgeBertError("unavailable", `isa is ${isa}, and this engine runs ${usable.join(", ")}`);
  const [module, bytes] = await Promise.all([
    compile(isa ?? usable[0]),
    readFile(source, { onProgress, signal, sha256: sha256?.toLowerCase() }),
  ]);
  const places =
    worker === false || worker === 0
      ? [new Local()]
      : await Promise.all(Array.from({ length: Number(worker) }, () => Remote.start()));
  try {
    const told = await Promise.all(
      places.map((place) => place.call("load", [{ module, bytes, options: rest }], { signal })),
    );
    return new Model(places, told[0]);
  } catch (error) {
    await Promise.all(places.map((place) => place.close()));
    throw error;
  }
}

// ---- Files ----

const modules = new Map(); // models of one binary share its code

async function compile(isa) {
  if (!modules.has(isa))
    modules.set(
      isa,
      download(BINARIES[isa].url(), {}).then((bytes) => WebAssembly.compile(bytes)),
    );
  try {
    return await modules.get(isa);
  } catch (error) {
    modules.delete(isa); // the next load tries again
    throw error;
  }
}

async function readFile(source, { onProgress, signal, sha256 }) {
  if (source instanceof ArrayBuffer) source = new Uint8Array(source);
  if (globalThis.Blob && source instanceof Blob) source = new Uint8Array(await source.arrayBuffer());
  if (source instanceof Uint8Array) {
    await checkHash(source, sha256, "the file");
    onProgress?.({ loaded: source.length, total: source.length });
    return source;
  }
  if (typeof source !== "string" && !(source instanceof URL))
    throw new EdgeBertError("invalid-input", `the source is ${source}, expected a path, a URL, bytes or a Blob`);
  const cache = sha256 && (await globalThis.caches?.open("edgebert").catch(() => undefined));
  const key = `https://edgebert.invalid/${sha256}`; // names the file wherever it comes from
  const kept = await cache?.match(key);
  if (kept) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if (await hasHash(bytes, sha256)) {
      onProgress?.({ loaded: bytes.length, total: bytes.length });
      return bytes;
    }
  }
  const bytes = await download(source, { onProgress, signal });
  await checkHash(bytes, sha256, source);
  await cache?.put(key, new Response(bytes)).catch(() => undefined); // no room there is no reason to fail
  return bytes;
}

async function hasHash(bytes, sha256) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

async function checkHash(bytes, sha256, what) {
  if (sha256 === undefined) return;
  if (!globalThis.crypto?.subtle)
    throw new EdgeBertError("unavailable", "hashes cannot be checked here: this page is not a secure context");
  if (!(await hasHash(bytes, sha256))) throw new EdgeBertError("wrong-hash", `the SHA-256 of ${what} is not ${sha256}`);
}

async function download(source, { onProgress, signal }) {
  const isPath = isNode && !/^(https?|data|blob):/.test(source);
  try {
    if (isPath) {
      const { readFile } = await fromNode("fs/promises");
      const bytes = new Uint8Array(await readFile(/^file:/.test(source) ? new URL(source) : source, { signal }));
      onProgress?.({ loaded: bytes.length, total: bytes.length });
      return bytes;
    }
    const response = await fetch(source, { signal });
    if (!response.ok) throw new Error(`the server answers ${response.status} ${response.statusText}`);
    const total = Number(response.headers.get("content-length") ?? 0);
    const parts = [];
    let loaded = 0;
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded += value.length;
      onProgress?.({ loaded, total });
    }
    const bytes = new Uint8Array(loaded);
    for (const part of parts.reverse()) bytes.set(part, (loaded -= part.length));
    return bytes;
  } catch (error) {
    signal?.throwIfAborted();
    throw new EdgeBertError(isPath ? "file" : "download", `${source}: ${error.message}`);
  }
}

// ---- Where an engine lives: calls one after another, in the order they came ----

class Place {
  #last = Promise.resolve();

  call(method, args, { signal } = {}) {
    const run = async () => {
      signal?.throwIfAborted();
      const value = await this.run(method, args);
      signal?.throwIfAborted();
      return value;
    };
    this.#last = this.#last.then(run, run);
    return this.#last;
  }
}

class Local extends Place {
  #engine = new Engine();

  async run(method, args) {
    if (this.#engine === undefined) throw new EdgeBertError("disposed", "the model was disposed of");
    return method === "load" ? this.#engine.load(...args) : this.#engine.call(method, args);
  }

  async close() {
    this.#engine = undefined; // the only reference to its memory
  }
}

class Remote extends Place {
  #worker;
  #settle; // of the call that runs

  static async start() {
    const place = new Remote();
    if (isNode) {
      const { Worker } = await fromNode("worker_threads");
      place.#worker = new Worker(new URL("./worker.js", import.meta.url));
      place.#worker.on("message", (reply) => place.#receive(reply));
      place.#worker.on("error", (error) => place.#fail("internal", `the worker failed: ${error.message}`));
      place.#worker.unref(); // a call keeps the process alive, a model does not
    } else {
      place.#worker = makeWorker();
      place.#worker.onmessage = ({ data }) => place.#receive(data);
      place.#worker.onerror = (event) =>
        place.#fail("internal", `the worker failed: ${event.message ?? "its script did not load"}`);
    }
    return place;
  }

  #receive({ value, error }) {
    if (error) this.#fail(error.code, error.message);
    else this.#settle?.resolve(value);
  }

  #fail(code, message) {
    this.#settle?.reject(new EdgeBertError(code, message));
  }

  async run(method, args) {
    if (this.#worker === undefined) throw new EdgeBertError("disposed", "the model was disposed of");
    this.#worker.ref?.();
    try {
      return await new Promise((resolve, reject) => {
        this.#settle = { resolve, reject };
        this.#worker.postMessage({ method, args });
      });
    } finally {
      this.#worker?.unref?.();
    }
  }

  async close() {
    const worker = this.#worker;
    this.#worker = undefined;
    this.#fail("disposed", "the model was disposed of");
    await worker?.terminate();
  }
}

// A page may not start a worker from another site's script, but may import it: what a CDN needs. Bundlers look for the
// first form.
function makeWorker() {
  if (new URL(import.meta.url).origin === globalThis.location.origin)
    return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const script = new Blob([`import ${JSON.stringify(new URL("./worker.js", import.meta.url))};`], {
    type: "text/javascript",
  });
  const url = URL.createObjectURL(script);
  try {
    return new Worker(url, { type: "module" });
  } finally {
    setTimeout(() => URL.revokeObjectURL(url), 60_000); // when it has long been read
  }
}

// ---- The model ----

class Model {
  #places;
  #turn = 0;

  constructor(places, told) {
    this.#places = places;
    Object.assign(this, told);
  }

  embed(texts, options) {
    return this.#each("embed", texts, options);
  }

  classify(texts, options) {
    return this.#each("classify", texts, options);
  }

  tag(texts, options) {
    return this.#each("tag", texts, options);
  }

  answer(questions, options) {
    return this.#each("answer", questions, options);
  }

  tokenize(texts, options) {
    return this.#each("tokenize", texts, options);
  }

  rank(query, texts, { signal, ...options } = {}) {
    return this.#next().call("rank", [query, texts, options], { signal });
  }

  async memoryBytes() {
    const each = await Promise.all(this.#places.map((place) => place.call("memoryBytes", [])));
    return each.reduce((sum, bytes) => sum + bytes, 0);
  }

  async dispose() {
    await Promise.all(this.#places.map((place) => place.close()));
  }

  #next() {
    return this.#places[this.#turn++ % this.#places.length];
  }

  // One input gives one answer; a list is divided among the workers.
  async #each(method, inputs, { signal, ...options } = {}) {
    if (!Array.isArray(inputs)) return (await this.#next().call(method, [[inputs], options], { signal }))[0];
    const size = Math.max(1, Math.ceil(inputs.length / this.#places.length));
    const calls = [];
    for (let first = 0; first === 0 || first < inputs.length; first += size) {
      calls.push(this.#next().call(method, [inputs.slice(first, first + size), options], { signal }));
    }
    return (await Promise.all(calls)).flat();
  }
}

// ---- Embeddings ----

function dot(a, b) {
  if (typeof a[0] !== "number" || typeof b[0] !== "number")
    throw new EdgeBertError("invalid-input", "expected two embeddings, the numbers of one text each");
  if (a.length !== b.length)
    throw new EdgeBertError("invalid-input", `embeddings of ${a.length} and ${b.length} dimensions cannot be compared`);
  let sum = 0;
  for (let i = 0; i < a.length; ++i) sum += a[i] * b[i];
  return sum;
}

export function similarity(a, b) {
  return dot(a, b) / (Math.sqrt(dot(a, a) * dot(b, b)) || 1);
}

export function search(query, rows, { topK = 10 } = {}) {
  const found = rows.map((row, index) => ({ index, score: similarity(query, row) }));
  return found.sort((a, b) => b.score - a.score || a.index - b.index).slice(0, topK);
}
