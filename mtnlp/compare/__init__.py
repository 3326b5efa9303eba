"""Is multi-task worth it: a joint run beside single-task baselines. What has to run and what came of it."""
