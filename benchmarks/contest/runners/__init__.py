"""How each engine does the work, one module an engine. Each is imported in a process of its own (see `child.py`).

A runner has `load(setup)`, which makes everything ready and returns a function: rows in, (key, answer ids) pairs and a
dictionary of what it can say about the run out. The time is taken around that function alone.
"""
