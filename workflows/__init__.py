"""The pipeline as a library: declare a DAG, run it here, or render it for an engine."""
