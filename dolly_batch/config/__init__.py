"""What a job file and an evaluation file may say. Nothing else in the package reads YAML."""
