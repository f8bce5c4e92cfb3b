"""From a plan to staged answers: waves on the driver, shards on the executors."""
