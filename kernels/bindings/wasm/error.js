const ADVICE = {
  "invalid-input": "Call again with what the message asks for.",
  "model-format": "Do what the message says, or get the file again: download it, or export it with `edgebert export`.",
  file: "Check the path: it counts from the folder that the program was started in.",
  unsupported: "Use a file of another kind, or the native library.",
  unavailable: "Open the page over https or from localhost, in a browser of today.",
  "out-of-memory":
    "Load a smaller file, as one exported with --int8, call with fewer texts, or dispose of other models.",
  internal: "Load the model again; if that does not help, report this with the file and the call.",
  download: "Check the address and the network; from another site, the server must allow it (CORS).",
  "wrong-hash": "Download the file again; if that does not help, it is not the file that the hash is of.",
  "no-simd": "Use a browser of 2023 or later, or Node 20: they have WebAssembly's SIMD.",
  disposed: "Load the model again.",
};

/** `code` is the kind of failure, `message` says what happened, and `advice` what to do. */
export class EdgeBertError extends Error {
  name = "EdgeBertError";

  constructor(code, message) {
    super(message);
    this.code = code;
    this.advice = ADVICE[code];
  }
}
