// The page: one model, the texts that are searched in with their embeddings, and a query.
import { load, search } from "./edgebert/index.js";

const BATCH = 4; // texts between which a query has its turn
const SHOWN = 8;
const LONG = 500; // characters of a line that is divided into sentences
const $ = (id) => document.getElementById(id);
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const demo = $("source").textContent;

let model;
let texts = [];
let rows = []; // of the first texts, while others are embedded
let filling = new AbortController();
let asking = new AbortController();

function say(doing, value) {
  $("working").hidden = doing === undefined;
  if (doing === undefined) return;
  $("doing").textContent = doing;
  if (value === undefined) $("progress").removeAttribute("value");
  else $("progress").value = value;
}

function fail(error) {
  if (error.name === "AbortError") return;
  say();
  $("error").textContent = [error.message, error.advice].filter(Boolean).join(". ");
}

// Embeds the texts that are searched in from now on.
async function fill(found, source) {
  filling.abort();
  const { signal } = (filling = new AbortController());
  [texts, rows] = [found, []];
  $("source").textContent = source;
  $("examples").hidden = source !== demo;
  $("back").hidden = source === demo;
  $("facts").textContent = `${model.told}, ${model.isa}.`;
  show([], "");
  $("error").textContent = "";
  const started = performance.now();
  while (rows.length < texts.length) {
    say(`Embedding ${texts.length} texts`, rows.length / texts.length);
    const more = await model.embed(texts.slice(rows.length, rows.length + BATCH), { signal });
    signal.throwIfAborted(); // that came too late
    rows.push(...more);
  }
  say();
  const seconds = (performance.now() - started) / 1000;
  $("facts").textContent += ` ${texts.length} texts embedded in ${seconds.toFixed(2)} s.`;
  await ask();
}

async function ask() {
  asking.abort();
  const { signal } = (asking = new AbortController());
  const query = $("query").value.trim();
  if (!query || !model) return show([], "");
  const started = performance.now();
  const row = await model.embed(query, { signal });
  signal.throwIfAborted();
  const found = search(row, rows, { topK: SHOWN });
  const took = performance.now() - started;
  const among = rows.length < texts.length ? `${rows.length} of ${texts.length}` : texts.length;
  show(found, `${took < 1 ? "under 1" : took.toFixed(0)} ms: the nearest of ${among} texts, by cosine`);
}

function show(found, told) {
  $("found").textContent = told;
  $("results").replaceChildren(
    ...found.map(({ index, score }) => {
      const item = document.createElement("li");
      const [text, number, bar] = ["div", "span", "i"].map((tag) => item.appendChild(document.createElement(tag)));
      text.textContent = texts[index];
      number.textContent = score.toFixed(3);
      bar.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
      return item;
    }),
  );
}

async function open(file) {
  if (!file) return;
  await ready;
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not text in UTF-8. Save it as that, and open it again`);
  }
  const sentences = new Intl.Segmenter(undefined, { granularity: "sentence" });
  const found = text
    .split(/\r\n|[\r\n]/)
    .flatMap((line) => (line.length > LONG ? Array.from(sentences.segment(line), ({ segment }) => segment) : line))
    .map((one) => one.trim())
    .filter(Boolean);
  if (text.includes("\0") || !found.length) throw new Error(`${file.name} has no lines of text. Open another`);
  await fill(found, file.name);
}

// Loads the model; the demo's sentences.
async function start() {
  const [{ name, sha256 }, sentences] = await Promise.all([
    fetch("model.json").then((reply) => reply.json()),
    fetch("sentences.txt").then((reply) => reply.text()),
  ]);
  let size = 0;
  const onProgress = ({ loaded, total }) => {
    size = loaded;
    say(`Loading ${name}: ${megabytes(loaded)} of ${megabytes(total)} MB`, total ? loaded / total : undefined);
  };
  model = await load(new URL("model.onnx", location.href), { sha256, onProgress });
  model.told = `${name}, ${megabytes(size)} MB`;
  const lines = sentences.trimEnd().split("\n");
  $("back").addEventListener("click", () => {
    $("query").focus();
    fill(lines, demo).catch(fail);
  });
  return lines;
}

const ready = start();
ready.then((lines) => fill(lines, demo)).catch(fail);
$("query").addEventListener("input", () => ask().catch(fail));
$("form").addEventListener("submit", (event) => event.preventDefault());
$("examples").addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  $("query").value = target.textContent;
  $("query").focus();
  ask().catch(fail);
});
$("file").addEventListener("change", ({ target }) => {
  open(target.files[0]).catch(fail);
  target.value = ""; // so that the same file can be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").className = "over";
});
addEventListener("dragleave", () => ($("drop").className = ""));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").className = "";
  open(event.dataTransfer.files[0]).catch(fail);
});
