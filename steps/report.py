"""The run on one page: a pure function from the records to HTML."""

from steps.workspace import Workspace


def write(workspace: Workspace) -> None:
    """Renew the run's report from its records."""
