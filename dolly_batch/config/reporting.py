"""Where a run is told of, beside its report.json."""

from dolly_batch.config.yaml_file import Section


class ReportConfig(Section):
    """What is made of a run's numbers when it is complete."""

    html: bool = True
    """A page in the plan's folder, report.html; two or three small queries over the answers."""
