"""One verb per arrow of the pipeline; the only place where the cluster and the algorithm meet."""
