"""Offline batch scoring: a file of rows in, the same rows with a model's answers out, resumable.

`readers` cuts the input into windows of rows, `survey` reads all of them to settle the columns and to refuse what
cannot be done, `scorer` answers a window, `writers` turns it into a part of the output,
`output` commits parts and keeps the manifest, `runner` drives them. `ray_engine` drives the same scorer on Ray.
"""
