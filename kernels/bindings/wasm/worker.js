// In a worker: one engine, and a reply to each message. Node's workers have a port where browsers' have a scope.
import { Engine } from "./engine.js";

function serve(port) {
  const engine = new Engine();
  port.onmessage = async ({ data: { method, args } }) => {
    try {
      port.postMessage({ value: await (method === "load" ? engine.load(...args) : engine.call(method, args)) });
    } catch (error) {
      port.postMessage({ error: { code: error.code ?? "internal", message: error.message } });
    }
  };
}

const node = "node:worker_threads";
if (globalThis.WorkerGlobalScope) serve(globalThis);
else import(/* @vite-ignore */ node).then(({ parentPort }) => serve(parentPort));
