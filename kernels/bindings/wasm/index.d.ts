/** BERT-family encoders in WebAssembly: one EdgeBERT file, texts in, answers out. Nothing leaves the machine. */

/** The kind of a failure; `EdgeBertError.message` says what happened, `advice` what to do. */
export type ErrorCode =
  | "invalid-input"
  | "model-format" // damaged, cut off, or not a file of EdgeBERT's
  | "unsupported"
  | "unavailable"
  | "out-of-memory"
  | "internal"
  | "download"
  | "file" // a path that cannot be read
  | "wrong-hash"
  | "no-simd"
  | "disposed";

export class EdgeBertError extends Error {
  constructor(code: ErrorCode, message: string);
  readonly code: ErrorCode;
  readonly advice: string;
}

export type Isa = "wasm_relaxed_simd" | "wasm_simd128";

export interface LoadOptions {
  /** Called as the file comes, in bytes; `total` is 0 where the server does not tell it. */
  onProgress?: (progress: { loaded: number; total: number }) => void;
  /** Ends the loading, with the signal's reason. */
  signal?: AbortSignal;
  /** SHA-256 of the file, in hexadecimal: another file is refused, and in browsers this one is kept in the Cache API. */
  sha256?: string;
  /** An Ed25519 public key in hexadecimal: a file that `edgebert sign` has not signed with it is refused. */
  publicKey?: string;
  /**
   * Whether calls run in a worker, so that this thread goes on meanwhile: true in browsers, false in Node. A number is
   * of workers, each with the whole model; lists of inputs are divided among them.
   */
  worker?: boolean | number;
  /** The binary to run; the fastest that this machine can, unless told. */
  isa?: Isa;
  /** Tokens of a text at most; the file's limit unless told (question answering: 384 at most). */
  maxLength?: number;
  /** What becomes of longer texts: answers from windows, for question answering, else their end is left out. */
  longTexts?: "truncated" | "windows";
  /** Tokens that windows have in common. */
  stride?: number;
  /** Run all layers for every text, also in a file with exits, where a text that is sure goes no deeper. */
  fullDepth?: boolean;
}

/** A path (Node), a URL, or the file itself. */
export type Source = string | URL | ArrayBuffer | Uint8Array | Blob;

export function load(source: Source, options?: LoadOptions): Promise<Model>;

/** A call that waits for others is dropped when its signal says so; one that runs is through first. */
export interface CallOptions {
  signal?: AbortSignal;
}

export interface EmbedOptions extends CallOptions {
  /** One of the file's prompts, put before every text; the file's default unless told. */
  promptName?: string;
  /** A prompt of one's own instead; "" for none. */
  prompt?: string;
  /** Scales each to length 1, also where the file does not. */
  normalize?: boolean;
  /** Leading dimensions to keep. */
  width?: number;
}

export type ScoreFunction = "none" | "sigmoid" | "tanh" | "softmax";

export interface ClassifyOptions extends CallOptions {
  /** Labels of each text, best first; all unless told. */
  topK?: number;
  /** From logits to scores; what the file asks for unless told. */
  function?: ScoreFunction;
}

export interface RankOptions extends ClassifyOptions {
  /** Whose score ranks; needed where the file has several. */
  label?: string;
}

export interface TagOptions extends CallOptions {
  /** How tokens form entities; "none" answers single tokens. "simple" unless told. */
  aggregation?: "none" | "simple" | "first" | "average" | "max";
  /** Labels that are left out; ["O"] unless told. */
  ignore?: readonly string[];
}

export interface AnswerOptions extends CallOptions {
  /** Answers, best first; 1 unless told. */
  topK?: number;
  /** 15 unless told. */
  maxAnswerTokens?: number;
  /** "No answer", with start = end = 0, competes with the others. */
  allowsNoAnswer?: boolean;
}

export interface TokenizeOptions extends CallOptions {
  /** Tokens of a text at most; as many as other calls take unless told, 0 for no limit. */
  maxLength?: number;
  /** false leaves [CLS] and its like out. */
  specialTokens?: boolean;
}

export interface Label {
  label: string;
  score: number;
}

/** `text.slice(start, end)`: places count UTF-16 units, as JavaScript does. */
export interface Span {
  text: string;
  start: number;
  end: number;
  score: number;
}

export interface Entity extends Span {
  label: string;
}

export interface Ranked {
  /** The text's place in the list. */
  index: number;
  score: number;
}

export interface Tokens {
  ids: Int32Array;
  typeIds: Int32Array;
  /** Start and end of each token in the text, in UTF-16 units; 0, 0 for special ones. */
  offsets: Int32Array;
  /** The word that each token is of; -1 for special ones. */
  wordIds: Int32Array;
  isTruncated: boolean;
}

/** A text, or a text and its pair. */
export type TextOrPair = string | { text: string; pair: string };

export interface Question {
  question: string;
  context: string;
}

/** Each call fits files of one task; a file of another is refused. Of a list it answers a list. */
export interface Model {
  /** Of the file's head, as "embedding". */
  readonly task: string;
  readonly labels: readonly string[];
  readonly hiddenSize: number;
  readonly maxLength: number;
  /** The binary that runs. */
  readonly isa: Isa;

  embed(text: string, options?: EmbedOptions): Promise<Float32Array>;
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>;
  classify(text: TextOrPair, options?: ClassifyOptions): Promise<Label[]>;
  classify(texts: readonly TextOrPair[], options?: ClassifyOptions): Promise<Label[][]>;
  tag(text: string, options?: TagOptions): Promise<Entity[]>;
  tag(texts: readonly string[], options?: TagOptions): Promise<Entity[][]>;
  answer(question: Question, options?: AnswerOptions): Promise<Span[]>;
  answer(questions: readonly Question[], options?: AnswerOptions): Promise<Span[][]>;
  tokenize(text: string, options?: TokenizeOptions): Promise<Tokens>;
  tokenize(texts: readonly string[], options?: TokenizeOptions): Promise<Tokens[]>;
  /** The texts, best first, as a cross-encoder ranks them for the query. */
  rank(query: string, texts: readonly string[], options?: RankOptions): Promise<Ranked[]>;

  /** Bytes of WebAssembly memory that the model has. */
  memoryBytes(): Promise<number>;
  /** Gives the memory back. Calls that wait, and later ones, are refused with "disposed". */
  dispose(): Promise<void>;
}

/** Cosine of two embeddings. */
export function similarity(a: Float32Array, b: Float32Array): number;

/** The rows most like the query, best first, by their cosine; 10 unless told. */
export function search(query: Float32Array, rows: readonly Float32Array[], options?: { topK?: number }): Ranked[];
