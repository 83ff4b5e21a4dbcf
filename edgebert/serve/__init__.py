"""`edgebert serve`: models behind HTTP, in the interfaces of OpenAI, Text Embeddings Inference, Cohere and pipelines.

server.py      uvicorn: the socket, processes, signals
app.py         routes, and the page
calls.py       what every call has in common: key, body, limits, errors, request id, log, metrics
openai.py  tei.py  plain.py      one file an interface: JSON in, work for the batcher, JSON out
models.py      the models by name, and work made of tasks
batcher.py     a queue a model, and the threads that run it
"""
