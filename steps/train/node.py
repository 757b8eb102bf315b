"""Which node of a training this is, as the environment of a pod says it.

Kubeflow Trainer's torch runtime sets PET_*; a runtime without torch policy sets none of them, and
the TrainJob itself gives SFT_*, to which an indexed Job adds the pod's index.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steps.errors import ConfigError

_PORT = 29500


@dataclass(frozen=True)
class Node:
    """One machine among those that train together; the default is a machine alone."""

    count: int = 1
    rank: int = 0
    address: str = ""
    """Host name of node 0; empty where there is no other."""
    port: int = _PORT
    processes: str = "auto"
    """Training processes here: auto (one a GPU) or a number."""

    def __str__(self) -> str:
        return f"node {self.rank} of {self.count}" if self.count > 1 else "this node"


def this_node(environ: Mapping[str, str]) -> Node:
    """The node of this pod. Raises ConfigError where the environment is incomplete or at odds."""
    by_torchrun = {name: value for name, value in environ.items() if name.startswith("PET_")}
    told = _Told(by_torchrun or environ)
    if by_torchrun:
        count = told.number("PET_NNODES", at_least=1)
        node = Node(
            count,
            told.number("PET_NODE_RANK"),
            told.text("PET_MASTER_ADDR") if count > 1 else "",
            told.number("PET_MASTER_PORT", default=_PORT),
            _processes(environ.get("PET_NPROC_PER_NODE", "auto")),
        )
        asked = environ.get("SFT_NODES", "")
        if asked and asked != str(count):
            raise ConfigError(
                f"PET_NNODES is {count}, but the job was made for {asked} nodes: let the runtime "
                "leave the number of nodes to the job"
            )
    elif environ.get("SFT_NODES", "1") == "1":
        return Node()
    else:
        node = Node(
            told.number("SFT_NODES", at_least=1),
            told.number("JOB_COMPLETION_INDEX"),
            told.text("SFT_MASTER_ADDR"),
        )
    if node.rank >= node.count:
        raise ConfigError(
            f"this is node {node.rank}, counted from 0, of {node.count}: one is wrong"
        )
    return node


class _Told:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        if value := self._environ.get(name, "").strip():
            return value
        raise ConfigError(
            f"{name} is not set, which a training on several nodes needs: Kubeflow Trainer sets "
            "PET_NNODES, PET_NODE_RANK and PET_MASTER_ADDR where the runtime has a torch policy; "
            "else SFT_NODES, SFT_MASTER_ADDR and JOB_COMPLETION_INDEX tell it"
        )

    def number(self, name: str, *, at_least: int = 0, default: int | None = None) -> int:
        if default is not None and name not in self._environ:
            return default
        value = self.text(name)
        if value.isdecimal() and int(value) >= at_least:
            return int(value)
        raise ConfigError(f"{name} is {value!r}, not a number from {at_least} on")


def _processes(value: str) -> str:
    if value in ("auto", "gpu"):
        return "auto"
    if value.isdecimal() and int(value):
        return value
    raise ConfigError(
        f"PET_NPROC_PER_NODE is {value!r}: training needs GPUs, one a process; let the job ask for "
        "a GPU, or say --num-procs"
    )
