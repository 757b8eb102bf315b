"""`sft watch`: follow a run on a cluster to its end."""

from collections.abc import Sequence

from steps import flags
from steps.errors import CredentialsError
from workflows.cluster import api, connection
from workflows.console import Console
from workflows.pipeline import SFT


def main(argv: Sequence[str]) -> int:
    """Follow the run and return how it ended: 0, or the exit code of the step that failed."""
    parser = flags.Parser(
        prog="sft watch",
        description="Follow a run on Argo Workflows; the exit code is the run's.",
    )
    parser.add_argument("name", help="Name of the workflow.")
    connection.add_flags(parser)
    given = connection.parse(parser, argv)
    name = connection.workflow_name(given["name"])
    with Console() as console:
        return to_the_end(connection.connect(given), name, console)


def to_the_end(cluster: api.Cluster, name: str, console: Console) -> int:
    """Follow the run, print what it hands out, and return its exit code."""
    from workflows.cluster.follow import follow

    again = f"sft watch {name} {cluster.flags}"
    try:
        run = follow(cluster, name, SFT, console)
    except KeyboardInterrupt:
        console.note(f"the run goes on; to follow it again: {again}")
        return 130
    except CredentialsError:
        console.note(f"the run goes on; to follow it again: {again}")
        raise
    width = max(map(len, run.outputs), default=0)
    for output, value in run.outputs.items():
        if value:
            print(f"{output:{width}}  {value}")  # noqa: T201
    return run.exit_code
