// The page of `edgebert demo --web` in a browser, driven by puppeteer-core; tests/test_web.py gives the environment.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

const env = process.env;
const require = createRequire(`${env.EDGEBERT_NODE_MODULES}/page.js`);
const { default: puppeteer } = await import(require.resolve("puppeteer-core"));
const [name, executablePath] = env.EDGEBERT_BROWSER.split("=");
const cases = JSON.parse(await readFile(`${env.EDGEBERT_CASES}/cases.json`, "utf8"));
const complaints = [];
let browser, page;

const text = (id) => page.$eval(`#${id}`, (element) => element.textContent);
const found = () => page.$$eval("#results li div", (items) => items.map((item) => item.textContent));
const isReady = (count) =>
  page.waitForFunction(
    (told) => document.getElementById("facts").textContent.includes(told),
    {},
    `${count} texts embedded`,
  );
const shows = (texts) =>
  page
    .waitForFunction(
      (told) =>
        told === JSON.stringify(Array.from(document.querySelectorAll("#results li div"), (item) => item.textContent)),
      {},
      JSON.stringify(texts),
    )
    .catch(async () => assert.deepEqual(await found(), texts));
const shoot = (what) => page.screenshot({ path: `${env.EDGEBERT_SCREENSHOTS}/${name}-${what}.png`, fullPage: true });

before(async () => {
  const args = name === "chromium" ? ["--no-sandbox", "--disable-dev-shm-usage"] : [];
  browser = await puppeteer.launch({
    browser: name === "chromium" ? "chrome" : "firefox",
    executablePath,
    args,
    timeout: 120_000,
  });
  page = await browser.newPage();
  page.on("console", (message) => complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  await page.setViewport({ width: 1000, height: 800 });
  await page.goto(env.EDGEBERT_ADDRESS);
  await isReady(300);
});

after(() => browser?.close());

for (const isa of ["wasm_relaxed_simd", "wasm_simd128"]) {
  test(`${isa}: the native library's tokens and embeddings`, async (t) => {
    const told = await page.evaluate(
      async (isa, strings) => {
        const { load } = await import("/edgebert/index.js");
        const model = await load(new URL("/model.onnx", location.href), { isa }).catch((error) => error);
        if (model.code) return model.code;
        const tokens = await model.tokenize(strings);
        const told = {
          isa: model.isa,
          tokens: tokens.map((row) => ({
            ids: [...row.ids],
            typeIds: [...row.typeIds],
            offsets: [...row.offsets],
            wordIds: [...row.wordIds],
            isTruncated: row.isTruncated,
          })),
          embeddings: (await model.embed(strings)).map((row) => [...row]),
        };
        await model.dispose();
        return told;
      },
      isa,
      cases.strings,
    );
    if (told === "unavailable" && isa === "wasm_relaxed_simd") return t.skip("this browser has no relaxed SIMD");
    assert.equal(told.isa, isa);
    assert.deepEqual(told.tokens, cases.tokens);
    assert.deepEqual(told.embeddings, cases.embeddings); // to the bit
  });
}

test("the page finds as one types, and tells the binary and the time", async () => {
  assert.match(
    await text("facts"),
    /^model, \d+\.\d MB, wasm_(relaxed_simd|simd128)\. 300 texts embedded in \d+\.\d\d s\.$/,
  );
  await page.focus("#query");
  let typed = "";
  for (const [i, query] of cases.queries.slice(0, -1).entries()) {
    await page.keyboard.type(query.slice(typed.length));
    typed = query;
    await shows(cases.found[i]);
  }
  assert.match(await text("found"), /^(under 1|\d+) ms: the nearest of 300 texts/);
  await shoot("light");
  if (name === "chromium") {
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
    await shoot("dark");
    await page.emulateMediaFeatures([]);
  }
  await page.$eval("#query", (query) => query.select());
  await page.keyboard.type(cases.queries.at(-1));
  await shows(cases.found.at(-1));
  await page.$eval("#query", (query) => query.select());
  await page.keyboard.press("Backspace");
  await shows([]);
  const reached = [];
  for (let i = 0; i < 4; ++i) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.parentElement.id));
  }
  assert.deepEqual(reached, ["examples", "examples", "examples", "file"]);
});

test("a text file of one's own, and on a phone's width", async () => {
  await page.setViewport({ width: 360, height: 740 });
  const file = await page.$("#file");
  await file.uploadFile(`${env.EDGEBERT_CASES}/other.txt`);
  await page.waitForFunction(() =>
    document.getElementById("error").textContent.includes("other.txt is not text in UTF-8"),
  );
  await page.goto(env.EDGEBERT_ADDRESS, { waitUntil: "domcontentloaded" });
  await (await page.$("#file")).uploadFile(`${env.EDGEBERT_CASES}/own.txt`); // while the model loads
  await isReady(34); // three lines, one of 30 sentences, and one with blanks about it
  assert.equal(await text("error"), "");
  assert.equal(await text("source"), "own.txt");
  await page.type("#query", "x".repeat(400));
  await page.waitForFunction(() => document.querySelectorAll("#results li").length === 8);
  assert.equal((await found())[0], "x".repeat(400));
  const [width, room] = await page.evaluate(() => [
    document.documentElement.scrollWidth,
    document.documentElement.clientWidth,
  ]);
  assert.ok(width <= room, `${width} pixels in ${room}`);
  await shoot("phone");
  await page.click("#back");
  await isReady(300);
  await page.setViewport({ width: 1000, height: 800 });
});

test("again from the Cache API, checked; another file is refused", async () => {
  const downloads = () =>
    page.evaluate(
      () => performance.getEntriesByType("resource").filter((one) => one.name.endsWith("model.onnx")).length,
    );
  await page.goto(env.EDGEBERT_ADDRESS);
  await isReady(300);
  assert.equal(await downloads(), 0);
  await page.evaluate(async () => {
    const cache = await caches.open("edgebert");
    for (const key of await cache.keys()) await cache.put(key, new Response("damaged"));
  });
  await page.goto(env.EDGEBERT_ADDRESS);
  await isReady(300);
  assert.equal(await downloads(), 1);
  const codes = await page.evaluate(async (sha256) => {
    const { load } = await import("/edgebert/index.js");
    const code = (source, options) =>
      load(new URL(source, location.href), options).then(
        () => "none",
        (error) => error.code,
      );
    return [
      await code("/model.onnx", { sha256 }),
      await code("/model.onnx", { sha256: sha256.replace(/./g, "0") }),
      await code("/page.css", {}),
      await code("/nothing", {}),
    ];
  }, cases.sha256);
  assert.deepEqual(codes, ["none", "wrong-hash", "model-format", "download"]);
});

test("the browser had nothing to complain of", () => {
  const unexpected = complaints.filter((one) => !/404/.test(one)); // of what was asked for above
  assert.deepEqual(unexpected, []);
});
