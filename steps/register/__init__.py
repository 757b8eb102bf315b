"""The register step: the model in the registry, with where it came from."""
