"""Where a run is told of, beside its report.json."""

from dolly_batch.config.yaml_file import Section


class ReportConfig(Section):
    """What is made of a run's numbers when it is complete."""

    html: bool = True
    """A page in the plan's folder, report.html; two or three small queries over the answers."""
    mlflow: bool = False
    """Log parameters, metrics and report as a run of MLflow (extra `mlflow`)."""
    openlineage: bool = False
    """Emit one event of OpenLineage, from the input to the output (extra `lineage`)."""
