"""How a job stands: spark-submit jobs/status_table.py conf/JOB.yaml [--full]."""

from dolly_batch.command import run_script

if __name__ == "__main__":
    run_script("status")
