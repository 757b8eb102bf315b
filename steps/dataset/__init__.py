"""The dataset step: fetch, check and split chat data."""
