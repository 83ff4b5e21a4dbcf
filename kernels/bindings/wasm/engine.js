// One instance of the binary, with one model: what it imports, and the calls of edgebert.h. On wasm32 a struct of that
// header is a list of 32-bit words, as it is written here; layout.cc, which is compiled into the binary, checks that.
import { EdgeBertError } from "./error.js";

const STATUS = [
  "ok",
  "invalid-input",
  "model-format",
  "unsupported",
  "unavailable",
  "out-of-memory",
  "internal",
  "internal",
];
const LONG_TEXTS = [undefined, "truncated", "windows"];
const FUNCTIONS = [undefined, "none", "sigmoid", "tanh", "softmax"];
const AGGREGATIONS = ["none", "simple", "first", "average", "max"];
// As these are called here; the binary's messages name its own functions.
const METHODS = {
  eb_embed: "embed",
  eb_classify: "classify",
  eb_label_tokens: "tag",
  eb_answer: "answer",
  eb_rank: "rank",
};
const UTF16 = 3; // eb_offset_unit

const utf8 = new TextEncoder();
const decoder = new TextDecoder();

function choose(name, choices, value) {
  const index = choices.indexOf(value);
  if (index < 0)
    throw new EdgeBertError(
      "invalid-input",
      `${name} is ${value}, expected one of ${choices.filter(Boolean).join(", ")}`,
    );
  return index;
}

// What the C library asks of a system: there is none but for a clock.
function makeImports(module, memory) {
  const known = {
    environ_sizes_get(count, size) {
      const view = new DataView(memory().buffer);
      view.setUint32(count, 0, true);
      view.setUint32(size, 0, true);
      return 0;
    },
    environ_get: () => 0,
    clock_time_get(_id, _precision, at) {
      new DataView(memory().buffer).setBigUint64(at, BigInt(Math.round(performance.now() * 1e6)), true);
      return 0;
    },
  };
  const ENOSYS = 52;
  const names = WebAssembly.Module.imports(module).map((one) => one.name);
  return Object.fromEntries(names.map((name) => [name, known[name] ?? (() => ENOSYS)]));
}

export class Engine {
  #c; // the binary's functions and its memory
  #session = 0;
  #tokenizer = 0;
  #labels = [];
  #maxLength = 0;
  #taken = []; // of the heap, until the call ends

  /** Takes the module and the file's bytes; tells what the model is. */
  async load({ module, bytes, options }) {
    const imports = { wasi_snapshot_preview1: makeImports(module, () => this.#c.memory) };
    try {
      this.#c = (await WebAssembly.instantiate(module, imports)).exports;
    } catch (error) {
      throw new EdgeBertError("out-of-memory", `the WebAssembly memory could not be made: ${error.message}`);
    }
    return this.#guard(() => {
      this.#c._initialize();
      return this.#open(bytes, options);
    });
  }

  /** Runs one of the methods below. */
  call(method, args) {
    return this.#guard(() => this[method](...args));
  }

  #guard(body) {
    try {
      return body();
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError)
        throw new EdgeBertError("internal", `WebAssembly stopped: ${error.message}`);
      throw error;
    } finally {
      for (const at of this.#taken.splice(0)) this.#c.free(at);
    }
  }

  #open(bytes, { publicKey, maxLength = 0, longTexts, stride = 0, fullDepth }) {
    const file = this.#write(bytes);
    const key =
      publicKey === undefined ? 0 : this.#write(Uint8Array.from(publicKey.match(/../g), (byte) => parseInt(byte, 16)));
    const at = this.#words([0]);
    this.#check(this.#c.eb_load_memory(file, bytes.length, this.#words([0, 1, 0, 0, key, 0, fullDepth ? 1 : 0]), at));
    const [model] = this.#read(at, 1);
    this.#check(
      this.#c.eb_session_open(
        model,
        this.#words([maxLength, choose("longTexts", LONG_TEXTS, longTexts), stride, UTF16, 0]),
        at,
      ),
    );
    [this.#session] = this.#read(at, 1);
    this.#tokenizer = this.#c.eb_model_tokenizer(model);
    this.#labels = Array.from({ length: this.#c.eb_model_num_labels(model) }, (_, i) =>
      this.#string(this.#c.eb_model_label(model, i)),
    );
    this.#maxLength = maxLength || this.#c.eb_model_max_length(model);
    return {
      task: this.#string(this.#c.eb_model_task(model)),
      labels: this.#labels,
      hiddenSize: this.#c.eb_model_hidden_size(model),
      maxLength: this.#maxLength,
      isa: this.#string(this.#c.eb_model_isa(model)),
    };
  }

  // ---- Calls: lists in, lists out ----

  embed(texts, { promptName, prompt, normalize, width = 0 }) {
    const options = this.#words([
      this.#name("promptName", promptName),
      this.#name("prompt", prompt),
      normalize ? 1 : 0,
      width,
    ]);
    const [count, columns, data] = this.#ask("eb_embed", 4, this.#texts(texts), texts.length, options);
    return list(count, (i) => this.#copy(Float32Array, data + 4 * columns * i, columns));
  }

  classify(inputs, { topK = 0, function: told }) {
    const paired = inputs.filter((one) => typeof one === "object").length;
    if (paired > 0 && paired < inputs.length)
      throw new EdgeBertError(
        "invalid-input",
        `${paired} of ${inputs.length} texts have a pair: give each one, or none`,
      );
    const texts = this.#texts(paired ? inputs.map((one) => one.text) : inputs);
    const pairs = paired ? this.#texts(inputs.map((one) => one.pair)) : 0;
    const [count, k, labels, scores] = this.#ask(
      "eb_classify",
      5,
      texts,
      pairs,
      inputs.length,
      this.#words([topK, choose("function", FUNCTIONS, told)]),
    );
    return list(count, (i) => {
      const score = this.#copy(Float32Array, scores + 4 * k * i, k);
      return Array.from(this.#read(labels + 4 * k * i, k), (label, j) => ({
        label: this.#labels[label],
        score: score[j],
      }));
    });
  }

  rank(query, texts, { label, topK = 0, function: told }) {
    const options = this.#words([this.#name("label", label), topK, choose("function", FUNCTIONS, told)]);
    const [count, indices, scores] = this.#ask(
      "eb_rank",
      4,
      this.#texts([query]),
      this.#texts(texts),
      texts.length,
      options,
    );
    const score = this.#copy(Float32Array, scores, count);
    return Array.from(this.#read(indices, count), (index, i) => ({ index, score: score[i] }));
  }

  tag(texts, { aggregation = "simple", ignore }) {
    const ignored = ignore ? this.#words([...ignore.map((one) => this.#name("ignore", one)), 0]) : 0;
    const options = this.#words([choose("aggregation", AGGREGATIONS, aggregation), ignored, ignore?.length ?? 0]);
    const [count, bounds, entities] = this.#ask("eb_label_tokens", 4, this.#texts(texts), texts.length, options);
    return this.#groups(count, bounds, (k, i) => {
      const [label, , , start, end] = this.#read(entities + 32 * k, 5);
      const [score] = this.#copy(Float64Array, entities + 32 * k + 24, 1);
      return { label: this.#string(label), text: texts[i].slice(start, end), start, end, score };
    });
  }

  answer(questions, { topK = 0, maxAnswerTokens = 0, allowsNoAnswer }) {
    const asked = this.#texts(questions.map((one) => one.question)),
      contexts = this.#texts(questions.map((one) => one.context));
    const options = this.#words([topK, maxAnswerTokens, allowsNoAnswer ? 1 : 0, 0]);
    const [count, bounds, spans] = this.#ask("eb_answer", 4, asked, contexts, questions.length, options);
    return this.#groups(count, bounds, (k, i) => {
      const [start, end] = this.#read(spans + 16 * k, 2);
      const [score] = this.#copy(Float64Array, spans + 16 * k + 8, 1);
      return { text: questions[i].context.slice(start, end), start, end, score };
    });
  }

  tokenize(texts, { maxLength = this.#maxLength, specialTokens = true }) {
    const { data, ends } = this.#encode(texts);
    const bounds = this.#words([0, 0, ...ends.flatMap((end) => [end, 0])]); // 64 bits each
    const options = this.#words([maxLength, 1, 0, 0, 0, 0, specialTokens ? 0 : 1, UTF16, 0]);
    const at = this.#words([0]);
    this.#check(this.#c.eb_tokenize(this.#tokenizer, this.#words([data, bounds, 0, texts.length]), options, at));
    const [tokens] = this.#read(at, 1);
    const [count, , , ids, types, starts, offsets, words, , , , truncated] = this.#read(tokens, 12);
    const found = list(count, (i) => {
      const [begin, end] = this.#read(starts + 4 * i, 2),
        size = end - begin;
      return {
        ids: this.#copy(Int32Array, ids + 4 * begin, size),
        typeIds: this.#copy(Int32Array, types + 4 * begin, size),
        offsets: this.#copy(Int32Array, offsets + 8 * begin, 2 * size),
        wordIds: this.#copy(Int32Array, words + 4 * begin, size),
        isTruncated: this.#copy(Uint8Array, truncated + i, 1)[0] !== 0,
      };
    });
    this.#c.eb_tokens_free(tokens);
    return found;
  }

  memoryBytes() {
    return this.#c.memory.buffer.byteLength;
  }

  // ---- Words, bytes and strings of the binary's memory ----

  // The words of the struct that a call answers with.
  #ask(name, size, ...args) {
    const result = this.#take(4 * size);
    this.#check(this.#c[name](this.#session, ...args, result));
    return this.#read(result, size);
  }

  #check(status) {
    if (status === 0) return;
    const message = this.#string(this.#c.eb_last_error());
    throw new EdgeBertError(
      STATUS[status],
      message.replace(/\beb_\w+/g, (name) => METHODS[name] ?? name),
    );
  }

  #take(size) {
    const at = this.#c.malloc(size);
    if (at === 0) throw new EdgeBertError("out-of-memory", `there is no room for ${size} bytes`);
    this.#taken.push(at);
    return at;
  }

  #write(bytes) {
    const at = this.#take(bytes.length || 1);
    new Uint8Array(this.#c.memory.buffer).set(bytes, at);
    return at;
  }

  #words(values) {
    return this.#write(new Uint8Array(Int32Array.from(values).buffer));
  }

  #copy(Type, at, length) {
    return new Type(this.#c.memory.buffer, at, length).slice();
  }

  #read(at, length) {
    return this.#copy(Int32Array, at, length);
  }

  #groups(count, bounds, item) {
    const bound = this.#read(bounds, count + 1);
    return list(count, (i) => list(bound[i + 1] - bound[i], (k) => item(bound[i] + k, i)));
  }

  #string(at) {
    const memory = new Uint8Array(this.#c.memory.buffer);
    return decoder.decode(memory.slice(at, memory.indexOf(0, at)));
  }

  #name(option, value) {
    if (value === undefined) return 0;
    if (value.includes("\0")) throw new EdgeBertError("invalid-input", `${option} holds a NUL character`);
    return this.#write(utf8.encode(`${value}\0`));
  }

  // All texts one behind the other. A lone surrogate becomes U+FFFD, which is one unit of UTF-16 too.
  #encode(texts) {
    const wrong = texts.findIndex((one) => typeof one !== "string");
    if (wrong >= 0) throw new EdgeBertError("invalid-input", `text ${wrong} is ${texts[wrong]}, expected a string`);
    const encoded = texts.map((one) => utf8.encode(one));
    let size = 0;
    const ends = encoded.map((one) => (size += one.length));
    const data = this.#take(size || 1),
      memory = new Uint8Array(this.#c.memory.buffer);
    encoded.forEach((one, i) => memory.set(one, data + ends[i] - one.length));
    return { data, ends };
  }

  // [eb_text]
  #texts(texts) {
    const { data, ends } = this.#encode(texts);
    return this.#words([...ends.flatMap((end, i) => [data + (ends[i - 1] ?? 0), 0, end - (ends[i - 1] ?? 0), 0]), 0]);
  }
}

function list(length, item) {
  return Array.from({ length }, (_, i) => item(i));
}
