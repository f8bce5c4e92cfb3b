"""Bulk instruction following with the Dolly family of language models over tables, on Apache Spark."""

__version__ = "0.1.0"
