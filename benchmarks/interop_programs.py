"""Programs that run one model file or folder in somebody else's runtime, for benchmarks/interop.py.

Each reads a job (JSON) and writes {"rows", "versions", "milliseconds"}: for every call it can make, by the call's name,
one list of numbers a text. They run where this project is not installed. A call's name may go on after a comma: another
way to the same answer.
"""

from __future__ import annotations

from typing import NamedTuple

PYTHON_HEAD = """
import json, os, sys
from importlib import metadata
import numpy as np
job = json.load(open(sys.argv[1]))
folder, task, calls, milliseconds = job["folder"], job["task"], job["calls"], {}
def finish(rows, *packages):
    rows = {name: [np.asarray(row, np.float64).ravel().tolist() for row in part] for name, part in rows.items()}
    versions = {name: metadata.version(name) for name in packages}
    answer = {"rows": rows, "versions": versions, "milliseconds": milliseconds}
    json.dump(answer, open(sys.argv[2], "w"))
"""

OPTIMUM = """
from optimum import onnxruntime as ort
from transformers import AutoTokenizer
kind = {"embedding": "FeatureExtraction", "text-classification": "SequenceClassification",
        "token-classification": "TokenClassification", "question-answering": "QuestionAnswering",
        "fill-mask": "MaskedLM"}[task]
model = getattr(ort, "ORTModelFor" + kind).from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = {}
for name, call in calls.items():
    inputs = tokenizer(call["texts"], call["pairs"], padding=True, truncation=True, return_tensors="pt")
    outputs = model(**inputs)
    mask = inputs["attention_mask"].numpy()
    if task == "embedding":  # pooling is not Optimum's
        value = outputs["last_hidden_state"].numpy()
        value = value[:, 0] if job["pooling"] == "cls" else (value * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        rows[name] = value / np.linalg.norm(value, axis=1, keepdims=True) if job["normalize"] else value
    else:
        values = [outputs[output].numpy() for output in job["outputs"]]
        rows[name] = [np.concatenate([(v[i][m > 0] if job["per_token"] else v[i]).ravel() for v in values])
                      for i, m in enumerate(mask)]
finish(rows, "optimum", "optimum-onnx", "transformers", "torch", "onnxruntime")
"""

SENTENCE_TRANSFORMERS = """
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
if task == "embedding":
    model = SentenceTransformer(folder, backend="onnx", device="cpu")
    rows = {name: model.encode(call["texts"]) for name, call in calls.items()}
else:
    model = CrossEncoder(folder, backend="onnx", device="cpu")
    pairs = list(zip(calls["pairs"]["texts"], calls["pairs"]["pairs"]))
    rows = {"pairs": model.predict(pairs, activation_fn=torch.nn.Identity())}
finish(rows, "sentence-transformers", "optimum-onnx", "transformers", "torch", "onnxruntime")
"""

FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
rows = {}
for way, file, options in (
    ("", "model.onnx",
     {"pooling": PoolingType[job["pooling"].upper()], "normalization": job["normalize"]}),
    (", pooled by the file", "model.onnx",
     {"pooling": PoolingType.DISABLED, "normalization": False, "output_name": "sentence_embedding"}),
):
    model = "exported/folder" + way
    TextEmbedding.add_custom_model(
        model=model, sources=ModelSource(hf="exported/folder"), dim=job["width"], model_file=file, **options)
    embedding = TextEmbedding(model, specific_model_path=folder)
    rows |= {name + way: list(embedding.embed(call["texts"])) for name, call in calls.items()}
finish(rows, "fastembed", "onnxruntime", "tokenizers")
"""

NODE_HEAD = """
import fs from "node:fs";
import path from "node:path";
const [jobFile, outFile] = process.argv.slice(-2);
const job = JSON.parse(fs.readFileSync(jobFile));
// one row a text out of arrays [batch, sequence, width] or [batch, width], padding left out
const pick = (arrays, mask) => mask.map((row, i) => arrays.flatMap(({data, dims}) => {
  const size = data.length / dims[0], width = size / row.length;
  const values = Array.from(data.slice(i * size, (i + 1) * size));
  return job.per_token ? values.filter((_, k) => row[Math.floor(k / width)] > 0) : values;
}));
const finish = (rows, ...packages) => {
  const version = (name) => JSON.parse(fs.readFileSync(path.join("node_modules", name, "package.json"))).version;
  const versions = {node: process.versions.node, ...Object.fromEntries(packages.map((name) => [name, version(name)]))};
  fs.writeFileSync(outFile, JSON.stringify({rows, versions, milliseconds}));
};
const rows = {}, milliseconds = {};
"""

TRANSFORMERS_JS = """
import {env, pipeline} from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = path.dirname(job.folder);
const task = job.task === "embedding" ? "feature-extraction" : job.task;
const pipe = await pipeline(task, path.basename(job.folder));
for (const [name, {texts, pairs}] of Object.entries(job.calls)) {
  if (job.task === "embedding") {
    rows[name] = (await pipe(texts, {pooling: job.pooling, normalize: job.normalize})).tolist();
  } else {
    const inputs = pipe.tokenizer(texts, {text_pair: pairs, padding: true, truncation: true});
    const outputs = await pipe.model(inputs);
    rows[name] = pick(job.outputs.map((output) => outputs[output]), inputs.attention_mask.tolist());
  }
}
if (job.task.endsWith("classification")) await pipe(job.calls.texts.texts[0]);
if (job.task === "fill-mask") await pipe(pipe.tokenizer.mask_token);
finish(rows, "@huggingface/transformers", "onnxruntime-node");
"""

_ONNXRUNTIME_JS = """
for (const [name, {inputs}] of Object.entries(job.calls)) {
  const mask = inputs.attention_mask, dims = [mask.length, mask[0].length];
  const feed = Object.fromEntries(session.inputNames.map((input) =>
    [input, new ort.Tensor("int64", BigInt64Array.from(inputs[input].flat(), BigInt), dims)]));
  const outputs = await session.run(feed, job.outputs);
  rows[name] = pick(job.outputs.map((output) => outputs[output]), mask);
}
for (const length of job.lengths) {
  const feed = Object.fromEntries(session.inputNames.map((input) => [input, new ort.Tensor("int64",
    BigInt64Array.from({length}, (_, i) => BigInt(input === "attention_mask" ? 1 :
      input === "input_ids" ? i % job.vocab_size : 0)), [1, length])]));
  await session.run(feed, job.outputs);
  const spent = [], end = performance.now() + 1000 * job.seconds;
  while (spent.length < 5 || performance.now() < end) {
    const begin = performance.now();
    await session.run(feed, job.outputs);
    spent.push(performance.now() - begin);
  }
  milliseconds[length] = spent.sort((a, b) => a - b)[Math.floor(spent.length / 2)];
}
"""

ONNXRUNTIME_WEB = (
    """
import ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(job.file));
"""
    + _ONNXRUNTIME_JS
    + """
finish(rows, "onnxruntime-web");
"""
)

ONNXRUNTIME_NODE = (
    """
import ort from "onnxruntime-node";
const session = await ort.InferenceSession.create(job.file, {intraOpNumThreads: 1});
"""
    + _ONNXRUNTIME_JS
    + """
finish(rows, "onnxruntime-node");
"""
)

FILE_HEAD = (
    PYTHON_HEAD
    + """
import time, warnings
warnings.filterwarnings("ignore")
file, outputs, inputs = job["file"], job["outputs"], job["inputs"]
def answer(run, *packages):
    rows = {}
    for name, call in calls.items():
        feed = {key: np.array(call["inputs"][key], np.int64) for key in inputs}
        values = [np.asarray(value) for value in run(feed)]
        rows[name] = [np.concatenate([(v[i][np.array(m) > 0] if job["per_token"] else v[i]).ravel() for v in values])
                      for i, m in enumerate(call["inputs"]["attention_mask"])]
    for length in job["lengths"]:  # none unless times are asked for
        feed = {key: np.full((1, length), int(key == "attention_mask"), np.int64) for key in inputs}
        feed["input_ids"] += np.arange(length) % job["vocab_size"]
        run(feed)
        end, spent = time.perf_counter() + job["seconds"], []
        while len(spent) < 5 or time.perf_counter() < end:
            begin = time.perf_counter()
            run(feed)
            spent.append(1000 * (time.perf_counter() - begin))
        milliseconds[length] = float(np.median(spent))
    finish(rows, *packages)
def in_onnxruntime(file):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(outputs, {key: value for key, value in feed.items() if key in known})
"""
)

ONNXRUNTIME = """
answer(in_onnxruntime(file), "onnxruntime")
"""

REFERENCE = """
from onnx.reference import ReferenceEvaluator
evaluator = ReferenceEvaluator(file)
answer(lambda feed: evaluator.run(outputs, feed), "onnx")
"""

OPENVINO = """
import openvino
core = openvino.Core()
options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
model = core.compile_model(file, "CPU", options)
def run(feed):
    found = model(feed)
    return [found[output] for output in outputs]
answer(run, "openvino")
"""

ONNXSLIM = """
import onnx, onnxslim
onnx.save(onnxslim.slim(file), "slim.onnx")
answer(in_onnxruntime("slim.onnx"), "onnxslim", "onnxruntime")
"""

ONNXSIM = """
import onnx, onnxsim
model, is_same = onnxsim.simplify(onnx.load(file))
assert is_same
onnx.save(model, "sim.onnx")
answer(in_onnxruntime("sim.onnx"), "onnxsim", "onnxruntime")
"""

VERSION_CONVERTER = """
import onnx, onnx.version_converter
onnx.save(onnx.version_converter.convert_version(onnx.load(file), 21), "converted.onnx")
answer(in_onnxruntime("converted.onnx"), "onnx", "onnxruntime")
"""

FLOAT16 = """
import onnx
from onnxconverter_common import float16
onnx.save(float16.convert_float_to_float16(onnx.load(file), keep_io_types=True), "half.onnx")
answer(in_onnxruntime("half.onnx"), "onnxconverter-common", "onnx", "onnxruntime")
"""

ONNX2TORCH = """
import onnx, onnx2torch, torch
torch.set_num_threads(1)
torch.set_grad_enabled(False)
model = onnx2torch.convert(onnx.load(file)).eval()
def run(feed):
    found = model(*(torch.from_numpy(feed[key]) for key in inputs))
    found = [found] if isinstance(found, torch.Tensor) else found
    return [dict(zip(job["graph_outputs"], found))[output].numpy() for output in outputs]
answer(run, "onnx2torch", "torch")
"""

TINYGRAD = """
import shutil
if shutil.which("clang") is None:  # its CPU device compiles with it
    os.environ.setdefault("CC", next(filter(None, map(shutil.which, ("clang-19", "clang-16", "clang-14"))), "clang"))
os.environ.setdefault("DEV", "CPU")
from tinygrad import Tensor
from tinygrad.nn.onnx import OnnxRunner
model = OnnxRunner(file)
def run(feed):
    found = model({key: Tensor(value) for key, value in feed.items()})
    return [found[output].numpy() for output in outputs]
answer(run, "tinygrad")
"""

MNN = """
import subprocess, MNN.nn, MNN.expr
command = ["mnnconvert", "-f", "ONNX", "--modelFile", file, "--MNNModel", "model.mnn", "--bizCode", "edgebert"]
command[0] = os.path.join(os.path.dirname(sys.executable), command[0])
done = subprocess.run(command, capture_output=True, text=True)
if "Failed" in done.stdout:
    raise SystemExit("Error: mnnconvert: unsupported: " + done.stdout.partition("Not Support: ")[2].partition("\\n")[0])
manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": 1},))
model = MNN.nn.load_module_from_file("model.mnn", inputs, outputs, runtime_manager=manager)
def run(feed):
    wanted = [MNN.expr.const(feed[k].astype(np.int32), feed[k].shape, MNN.expr.NCHW, MNN.expr.int) for k in inputs]
    return [np.array(value.read()) for value in model.forward(wanted)]
answer(run, "MNN")
"""

OPENCV = """
import cv2
cv2.setNumThreads(1)
model = cv2.dnn.readNetFromONNX(file)
def run(feed):
    for key, value in feed.items():
        model.setInput(value, key)
    found = dict(zip(job["graph_outputs"], model.forward(job["graph_outputs"])))
    return [found[output] for output in outputs]
answer(run, "opencv-python-headless")
"""

TRACT = """
import tract
model = tract.onnx().load(file).into_model().into_runnable()
def run(feed):
    found = dict(zip(job["graph_outputs"], model.run([feed[key] for key in inputs])))
    return [found[output].to_numpy() for output in outputs]
answer(run, "tract")
"""

IREE = """
import subprocess
import iree.runtime
def tool(name, *arguments):
    program = os.path.join(os.path.dirname(sys.executable), name)
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error:" in line] or ["it failed"]
        raise SystemExit("Error: " + name + ": " + said[0].partition("error: ")[2])
tool("iree-import-onnx", file, "-o", "model.mlir")
tool("iree-compile", "model.mlir", "--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu",
     "--iree-llvmcpu-target-cpu=host", "-o", "model.vmfb")
module = iree.runtime.load_vm_flatbuffer_file("model.vmfb", driver="local-sync")
main = getattr(module, job["graph_name"])
def run(feed):
    found = main(*(feed[key] for key in inputs))
    found = found if isinstance(found, (tuple, list)) else [found]
    return [dict(zip(job["graph_outputs"], found))[output].to_host() for output in outputs]
answer(run, "iree-base-compiler", "iree-base-runtime")
"""

TVM = """
import onnx, tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
compiled = {}
def run(feed):
    shape = feed["input_ids"].shape
    if shape not in compiled:
        module = from_onnx(onnx.load(file), dict.fromkeys(inputs, list(shape)), dict.fromkeys(inputs, "int64"))
        compiled[shape] = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    found = compiled[shape]["main"](*(tvm.runtime.tensor(feed[key]) for key in inputs))
    return [dict(zip(job["graph_outputs"], found))[output].numpy() for output in outputs]
answer(run, "apache-tvm", "onnx")
"""

# Its runtime is Apple's: what is shown is that it converts.
COREAI = """
import subprocess
program = os.path.join(os.path.dirname(sys.executable), "coreai-onnx")
done = subprocess.run([program, "convert", "--no-verify", "-o", "m.aimodel", file], capture_output=True, text=True)
if done.returncode or not os.path.exists("m.aimodel"):
    raise SystemExit("Error: coreai-onnx: " + " ".join((done.stdout + done.stderr).split())[-250:])
finish({}, "coreai-onnx", "coreai-core")
"""

PNNX = """
import shutil, subprocess, ncnn
shape = np.array(calls["texts"]["inputs"]["input_ids"]).shape
sizes = ",".join("[1,%d]i64" % shape[1] for _ in inputs)
program = os.path.join(os.path.dirname(sys.executable), "pnnx")
shutil.copy(file, "model.onnx")
done = subprocess.run([program, "model.onnx", "inputshape=" + sizes], capture_output=True, text=True)
if not os.path.exists("model.ncnn.param"):
    raise SystemExit("Error: pnnx: " + " ".join((done.stdout + done.stderr).split())[-250:])
net = ncnn.Net()
net.opt.num_threads = 1
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
if net.load_param("model.ncnn.param") or net.load_model("model.ncnn.bin"):
    raise SystemExit("Error: ncnn cannot load what pnnx made: " + " ".join((done.stdout + done.stderr).split())[-250:])
def run(feed):
    rows = []
    for i in range(len(feed["input_ids"])):
        with net.create_extractor() as extractor:
            for k, key in enumerate(inputs):
                extractor.input("in%d" % k, ncnn.Mat(feed[key][i].astype(np.int32)))
            found = [np.array(extractor.extract("out%d" % k)[1]) for k in range(len(job["graph_outputs"]))]
        rows.append([dict(zip(job["graph_outputs"], found))[output] for output in outputs])
    return [np.stack(column) for column in zip(*rows)]
calls = {"texts": calls["texts"]}
answer(run, "pnnx", "ncnn")
"""


class Tool(NamedTuple):
    """One program.

    Attributes:
        program: what runs; Python, or JavaScript in Node.
        reads: "folder", from texts, or "file", from token ids.
        language: "python" or "node".
        tasks: those it serves; None: all.
    """

    program: str
    reads: str
    language: str = "python"
    tasks: tuple[str, ...] | None = None

    @property
    def source(self) -> str:
        """The whole of it."""
        if self.language == "node":
            return NODE_HEAD + self.program
        return (FILE_HEAD if self.reads == "file" else PYTHON_HEAD) + self.program


_TASKS = ("embedding", "text-classification", "token-classification", "question-answering", "fill-mask")
TOOLS = {
    "optimum": Tool(OPTIMUM, "folder", tasks=_TASKS),
    "sentence-transformers": Tool(SENTENCE_TRANSFORMERS, "folder", tasks=("embedding", "text-classification")),
    "fastembed": Tool(FASTEMBED, "folder", tasks=("embedding",)),
    "transformers.js": Tool(TRANSFORMERS_JS, "folder", "node", _TASKS),
    "onnxruntime": Tool(ONNXRUNTIME, "file"),
    "onnxruntime-web": Tool(ONNXRUNTIME_WEB, "file", "node"),
    "onnxruntime-node": Tool(ONNXRUNTIME_NODE, "file", "node"),
    "openvino": Tool(OPENVINO, "file"),
    "onnx reference": Tool(REFERENCE, "file"),
    "onnxslim": Tool(ONNXSLIM, "file"),
    "onnxsim": Tool(ONNXSIM, "file"),
    "version converter": Tool(VERSION_CONVERTER, "file"),
    "float16": Tool(FLOAT16, "file"),
    "onnx2torch": Tool(ONNX2TORCH, "file"),
    "tinygrad": Tool(TINYGRAD, "file"),
    "MNN": Tool(MNN, "file"),
    "opencv": Tool(OPENCV, "file"),
    "tract": Tool(TRACT, "file"),
    "IREE": Tool(IREE, "file"),
    "TVM": Tool(TVM, "file"),
    "Core AI": Tool(COREAI, "file"),
    "ncnn": Tool(PNNX, "file"),
}
