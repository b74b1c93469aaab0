"""Open a base, attach a method, keep adapters; what a stranger made is looked at first."""
