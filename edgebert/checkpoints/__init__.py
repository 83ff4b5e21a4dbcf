"""Checkpoints in: folders in the Hugging Face layout as a spec and canonical tensors."""
