"""Register the model with its provenance and scores in the Kubeflow Model Registry.

python -m steps.register --workspace runs/demo --address http://localhost:8080 --version 1.0.0
"""

import json
from dataclasses import asdict

from steps import entrypoint, files, record
from steps.entrypoint import Run
from steps.record import Asset, Result
from steps.register import registration, release
from steps.register.address import address
from steps.register.params import RegisterParams
from steps.register.registration import Registration


def check(params: RegisterParams, run: Run) -> None:
    """The registry answers, takes our credentials, and the version is free or this run's own."""
    if not params.address:
        return
    from steps.register.registry import connect, patiently

    where = address(params.address, params.port)

    def look() -> None:
        with connect(where, params.author) as registry:
            if params.on_conflict == "error":
                registration.refuse_taken_version(registry, params.name, params.version, run.name)

    patiently(look)


def inputs(_: RegisterParams, run: Run) -> dict[str, Asset]:
    """The model, and the records that its provenance and scores are taken from."""
    found = {"model": release.model(run)}
    for step in release.MADE_BEFORE:
        path = run.workspace.record(step)
        if path.exists():
            found[step] = Asset.of(path, run.workspace)
    return found


def main(params: RegisterParams, run: Run) -> Result:
    """Register the run's model, and write down what was, or would be, registered."""
    found = release.read(params, run)
    done = _register(params, found) if params.address else registration.skipped(found)
    path = run.workspace.registration
    files.write(path, json.dumps(asdict(done), indent=2) + "\n")
    return Result(
        outputs={"registration": Asset.of(path, run.workspace)},
        versions=record.versions(*(["model-registry"] if params.address else [])),
        results={
            "status": done.status,
            "version": done.version,
            "uri": done.uri,
            "id": done.ids.get("model_version", ""),
        },
        skipped=None if params.address else "no registry address",
    )


def _register(params: RegisterParams, found: release.Release) -> Registration:
    from steps.register.registry import connect, patiently

    where = address(params.address, params.port)
    increment = params.on_conflict == "increment"

    def attempt() -> Registration:
        with connect(where, params.author) as registry:
            return registration.register(registry, found, increment=increment)

    return patiently(attempt)


if __name__ == "__main__":
    entrypoint.run(main, RegisterParams, inputs=inputs, check=check)
