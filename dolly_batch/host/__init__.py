"""The engine host, one process per GPU (on CPUs: per executor), and its client.

Apart from the engine it imports the standard library only: every Spark task imports it.
"""
