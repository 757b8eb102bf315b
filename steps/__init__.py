"""What runs inside the containers: four steps that share one contract and know no engine."""

__version__ = "0.1.0"
