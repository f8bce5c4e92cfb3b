"""One engine process per GPU (on CPU: per executor), and its client. Standard library only, apart from the engine."""
