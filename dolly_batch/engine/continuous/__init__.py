"""The continuous-batching engine: a row leaves when it ends, and the next one takes its slot."""
