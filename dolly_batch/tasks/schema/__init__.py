"""The schema of an extracted object: Spark DDL and JSON Schema."""
