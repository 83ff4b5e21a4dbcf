"""`edgebert info`: what a file is."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from edgebert.printing import print_report

if TYPE_CHECKING:
    from edgebert.artifact.spec import EncoderSpec, ExitSpec

HELP = "print what a model file is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", help="a model file")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from edgebert.artifact.reader import find_model_file, read_artifact
    from edgebert.checkpoints.onnx_file import describe
    from edgebert.errors import ModelFormatError

    path = find_model_file(args.file)
    try:
        artifact = read_artifact(path, verify=False)
        if not artifact.is_changed:
            _ = artifact.tensors  # its weights are checked
    except ModelFormatError:
        print_report(describe(path) or {})
        raise
    spec = artifact.spec
    graph = _graph_form(spec)
    if artifact.is_changed:
        found = describe(path)
        graph = f"{found['graph']}, operator sets {found['operator sets']}" if found else "as another tool left it"
    heads, widths = ({getattr(layer, name) for layer in spec.layers} for name in ("num_heads", "intermediate_size"))
    num_layers = len(spec.layer_order)
    shared = f" (with the weights of {spec.num_layers})" if num_layers > spec.num_layers else ""
    fields: dict[str, Any] = {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB, graph "
        + ("changed since export: only the onnxruntime backend runs it" if artifact.is_changed else "verified"),
        "task": spec.task,
        "family": spec.family,
        "outputs": ", ".join(spec.outputs),
        "weights": ("int8" + (" (portable)" if spec.portable else "")) if spec.is_int8 else "fp32",
        "graph": graph,
        "attention": "int8" if spec.attention_dtype == "s8" else spec.attention_dtype,
        "sizes": f"{num_layers} layers{shared}, hidden_size {spec.hidden_size}, num_heads {_span(heads)}, "
        f"intermediate_size {_span(widths)}, vocab_size {spec.vocab_size}",
        "tokenizer": "in the file" if artifact.tokenizer_json is not None else "none: the file takes token ids",
        "max_length": f"{spec.max_length} tokens (the model has {spec.usable_positions} positions)",
    }
    if spec.task == "embedding":
        fields["pooling"] = spec.pooling + (", normalized" if spec.normalize else "")
    if spec.token_size:
        queries = f", of queries at most {spec.query_length} tokens" if spec.query_length else ""
        fields["token embeddings"] = f"{spec.token_size} dimensions" + ", normalized" * spec.normalize_tokens + queries
    if spec.sparse_pooling != "none":
        fields["sparse embeddings"] = f"the masked-LM head's logits by {spec.sparse_pooling}"
    if spec.labels:
        more = f", … ({len(spec.labels)})" if len(spec.labels) > 10 else ""
        fields["labels"] = ", ".join(spec.labels[:10]) + more
    if spec.exits:
        fields["exits"] = ", ".join(_describe_exit(each) for each in spec.exits)
        fields |= _read_depths(artifact.metadata.get("edgebert.compression", ""))
    if spec.prompts:
        fields["prompts"] = ", ".join(
            f"{name}{' (default)' if name == spec.default_prompt_name else ''}" for name in spec.prompts
        )
    print_report(fields)
    if artifact.report:
        print("export report:")
        print_report(artifact.report, indent="  ")
    artifact.check_graph()


def _graph_form(spec: EncoderSpec) -> str:
    if not spec.is_int8:
        return "f32, for any runtime of ONNX"
    if not spec.is_weight_only:
        return "integer products (MatMulInteger), for ONNX Runtime, also on the web"
    return (
        "f32, of weights that it dequantizes, for OpenVINO, MNN, tract and others; EdgeBERT's backends compute in int8"
    )


def _describe_exit(each: ExitSpec) -> str:
    taken = "never taken" if each.threshold is None else f"from a margin of {each.threshold:g} on"
    return f"after layer {each.after} {taken}"


def _read_depths(compression: str) -> dict[str, str]:
    """Where texts left when the file was made, if its report of compression tells."""
    try:
        exits = json.loads(compression)["exits"]
        shares = ", ".join(f"{100 * share:.1f} % after layer {after}" for after, share in exits["shares"].items())
        return {"depth": f"{exits['mean_depth']:.2f} layers a text: of {exits['texts']} texts {shares}"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _span(values: set[int]) -> str:
    return " to ".join(map(str, sorted({min(values, default=0), max(values, default=0)})))
