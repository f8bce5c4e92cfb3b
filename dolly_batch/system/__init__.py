"""What processes of one machine need of it: messages, identity, a watchdog, file locks. Standard library only."""
