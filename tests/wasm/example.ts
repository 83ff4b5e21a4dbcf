// What an app may write, for tsc --strict.
import { EdgeBertError, load, search, similarity, type Entity, type Model, type Ranked } from "edgebert";

export async function find(query: string, texts: string[], signal: AbortSignal): Promise<Ranked[]> {
  const model: Model = await load(new URL("https://example.org/minilm.onnx"), {
    signal,
    worker: 2,
    onProgress: ({ loaded, total }) => console.log(loaded / total),
  });
  const rows: Float32Array[] = await model.embed(texts, { normalize: true });
  const row: Float32Array = await model.embed(query, { promptName: "query", signal });
  console.log(similarity(row, rows[0]!), model.labels.join(), (await model.tokenize(query)).offsets[0]);
  await model.dispose();
  return search(row, rows, { topK: 3 });
}

export async function name(model: Model): Promise<Entity[][]> {
  try {
    const labels = await model.classify([{ text: "a", pair: "b" }], { topK: 1, function: "softmax" });
    const [best] = await model.answer({ question: "Who?", context: labels[0]![0]!.label });
    console.log(best?.text, await model.rank("a", ["b"], { label: "c" }));
    return await model.tag(["Ada in Paris"], { aggregation: "first" });
  } catch (error) {
    if (error instanceof EdgeBertError && error.code === "out-of-memory") console.log(error.advice);
    throw error;
  }
}

// @ts-expect-error: one text gives one row
export const wrong = async (model: Model): Promise<Float32Array[]> => await model.embed("a");
