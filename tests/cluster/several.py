"""Several commands in one Spark application: `spark-submit several.py '[["run", "job.yaml", "--json"], ...]'`."""

import json
import sys

from dolly_batch.cli import main

for arguments in json.loads(sys.argv[1]):
    main(arguments)
