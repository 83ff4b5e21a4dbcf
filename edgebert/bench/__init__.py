"""The one latency harness: peers in processes of their own, checked first, then timed in turns.

`peers/` wraps each runtime, `worker` runs one in a process, `harness` checks and times them, `roof` and `provenance`
say what the machine could do and what state it was in.
"""
