"""Runs on a cluster with Argo Workflows: started, followed, listed, stopped, retried."""
