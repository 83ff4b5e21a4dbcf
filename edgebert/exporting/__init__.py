"""Checkpoints out as model files: quantized where asked for, and through the gate."""
