"""Reports as HTML: one file, no network, nothing of a row but its id. The standard library alone."""
