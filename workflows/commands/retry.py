"""`sft retry`: do again what failed of a run on a cluster."""

from collections.abc import Sequence

from steps import flags
from workflows.cluster import api
from workflows.console import Console


def main(argv: Sequence[str]) -> int:
    """Ask for another attempt and return 0."""
    parser = flags.Parser(
        prog="sft retry",
        description="Do again what failed of a run on Argo Workflows, through its Argo server.",
    )
    parser.add_argument("name", help="Name of the workflow.")
    api.add_flags(parser)
    given = api.parse(parser, argv)
    name = api.workflow_name(given["name"])
    cluster = api.connect(given)
    cluster.retry(name)
    with Console() as console:
        console.note(f"{name} goes on; to follow it: sft watch {name} {cluster.flags}")
    return 0
