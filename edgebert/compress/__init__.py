"""Compression: fine-tune, distil, prune and quantize a model to a budget. The only part that imports torch."""
