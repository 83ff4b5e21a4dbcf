"""The backends: each loads a model file and runs packed batches."""
