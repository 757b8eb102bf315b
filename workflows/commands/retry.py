"""`sft retry`: do again what failed of a run on a cluster."""

from collections.abc import Sequence

from steps import flags
from workflows.cluster import connection
from workflows.console import Console


def main(argv: Sequence[str]) -> int:
    """Ask for another attempt and return 0."""
    parser = flags.Parser(
        prog="sft retry",
        description="Do again what failed of a run on Argo Workflows, through its Argo server.",
    )
    parser.add_argument("name", help="Name of the workflow.")
    connection.add_flags(parser)
    given = connection.parse(parser, argv)
    name = connection.workflow_name(given["name"])
    cluster = connection.connect(given)
    cluster.retry(name)
    with Console() as console:
        console.note(f"{name} goes on; to follow it: sft watch {name} {cluster.flags}")
    return 0
