"""One file a task: inputs to token rows, output rows to what transformers' pipeline of that task returns."""
