"""The `perennial` command: one module a verb. The only place that knows every wing."""
