"""One file per command: load, check, lock, call the engine, write results.

No stage imports torch when it is imported: `ftcli.engine` is imported inside.
"""
