"""Input and output tables: columns, schemas, formats."""
