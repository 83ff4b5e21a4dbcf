// What benchmarks/web.py runs in Node: one text at a time through each runtime, in turns, one thread each. Its argument
// is JSON; prints JSON.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const { package: folder, file, quantized, modules, tokens, rounds } = JSON.parse(process.argv[2]);
const { load, similarity } = await import(`${folder}/index.js`);
const bytes = new Uint8Array(await readFile(file));

// A text of so many tokens.
async function textOf(model, count) {
  const words =
    "how do i restart the router when its light is red and there is no network in any room of the house".split(" ");
  for (let text = words[0], i = 1; ; text += ` ${words[i++ % words.length]}`) {
    const { ids, typeIds } = await model.tokenize(text, { maxLength: 0 });
    if (ids.length >= count) return { text, ids, typeIds };
  }
}

const runtimes = {}; // name: a function that takes a text with its tokens, and gives its embedding
const told = {};
for (const isa of ["wasm_simd128", "wasm_relaxed_simd"]) {
  const begun = performance.now();
  const model = await load(bytes, { isa }).catch((error) => console.error(`${isa}: ${error.message}`));
  if (model === undefined) continue;
  const ready = performance.now() - begun;
  runtimes[isa] = ({ text }) => model.embed(text);
  told[isa] = { ready_ms: ready, model };
}
const texts = [];
for (const count of tokens) texts.push(await textOf(told.wasm_simd128.model, count));

if (modules) {
  const require = createRequire(`${modules}/package.json`);
  const ort = await import(pathToFileURL(require.resolve("onnxruntime-web")).href);
  ort.env.wasm.numThreads = 1;
  const names = { "onnxruntime-web, this file": file, "onnxruntime-web, quantize_dynamic": quantized };
  for (const [name, path] of Object.entries(names)) {
    if (!path) continue;
    const session = await ort.InferenceSession.create(new Uint8Array(await readFile(path)), {
      executionProviders: ["wasm"],
    });
    runtimes[name] = async ({ ids, typeIds }) => {
      const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
      const all = { input_ids: int64(ids), token_type_ids: int64(typeIds), attention_mask: int64(ids.map(() => 1)) };
      const feeds = Object.fromEntries(session.inputNames.map((input) => [input, all[input]]));
      return (await session.run(feeds, ["sentence_embedding"])).sentence_embedding.data;
    };
  }
}

const seconds = {};
const cosines = {};
for (const one of texts) {
  const count = one.ids.length;
  const expected = Float32Array.from(await runtimes.wasm_simd128(one));
  const taken = Object.fromEntries(Object.keys(runtimes).map((name) => [name, []]));
  cosines[count] = {};
  for (const [name, run] of Object.entries(runtimes)) {
    for (let i = 0; i < 30; ++i) await run(one); // compiled by now
    cosines[count][name] = similarity(expected, Float32Array.from(await run(one)));
  }
  for (let round = 0; round < rounds; ++round) {
    for (const [name, run] of Object.entries(runtimes)) {
      await run(one);
      const begun = performance.now();
      await run(one);
      taken[name].push((performance.now() - begun) / 1e3);
    }
  }
  seconds[count] = taken;
}
for (const [isa, { model }] of Object.entries(told)) {
  told[isa].memory_bytes = await model.memoryBytes();
  delete told[isa].model;
}
console.log(JSON.stringify({ node: process.versions, loading: told, seconds, cosines }));
process.exit(0);
