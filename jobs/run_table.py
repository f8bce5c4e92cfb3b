"""Answer a table: spark-submit jobs/run_table.py conf/JOB.yaml [--set a.b=value ...]."""

from dolly_batch.command import run_script

if __name__ == "__main__":
    run_script("run")
