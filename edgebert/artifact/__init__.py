"""The format of a model file: its spec, names, writer and reader."""
