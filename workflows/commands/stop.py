"""`sft stop`: end a run on a cluster."""

import argparse
from collections.abc import Sequence

from steps import flags
from workflows.cluster import connection
from workflows.console import Console
from workflows.pipeline import SFT


def main(argv: Sequence[str]) -> int:
    """Ask for the run's end and return 0; also where it is over already."""
    parser = flags.Parser(
        prog="sft stop",
        description="Stop a run on Argo Workflows. Its folder stays: the same run can go on.",
    )
    parser.add_argument("name", help="Name of the workflow.")
    parser.add_argument(
        "--terminate",
        action="store_true",
        default=argparse.SUPPRESS,
        help="At once, without the exit handler.",
    )
    connection.add_flags(parser)
    given = connection.parse(parser, argv)
    name = connection.workflow_name(given["name"])
    cluster = connection.connect(given)

    from workflows.cluster.run import read

    with Console() as console:
        run = read(cluster.get(name), SFT)
        if run.is_over:
            console.note(f"{name} is over already: {run.phase}")
            return 0
        cluster.stop(name, "Terminate" if "terminate" in given else "Stop")
        console.note(f"{name} stops; to see its end: sft watch {name} {cluster.flags}")
    return 0
