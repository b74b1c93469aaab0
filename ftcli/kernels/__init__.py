"""Optional speed that changes no result: each optimisation in a file of its own."""
