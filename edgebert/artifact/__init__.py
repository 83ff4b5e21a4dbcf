"""The model file: its spec, names, writer, reader, and the gate that every export passes."""
