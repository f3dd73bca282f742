"""Training frameworks: the only modules that import one."""
