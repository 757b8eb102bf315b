"""Environment variables of the training processes, as the parameter `env_vars` writes them."""

import re

_NAME = re.compile(r"[A-Za-z_][\w.-]*=")
_NEXT_PAIR = re.compile(rf"[,\s]*,\s*(?={_NAME.pattern})")


def environment(text: str) -> tuple[dict[str, str], list[str]]:
    """`K=V,K=V` as variables, and what is wrong with it.

    A comma begins the next pair only where a name and `=` follow: `NCCL_SOCKET_IFNAME=eth0,eth1` is
    one variable. What is wrong is told without the values, which may be secrets.
    """
    pairs = [pair for pair in _NEXT_PAIR.split(text.strip(", \n")) if pair]
    if pairs and not _NAME.match(pairs[0]):
        return {}, ["--env-vars: it does not begin with a name and '='; write K=V,K=V"]
    return {name: value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}, []
