"""A CPU engine of several processes: the pool, its workers, and the machine they share."""
