"""One task of a comparison in a process of its own: `python -m ftcli.stages.compare TASK ANSWER`.

TASK is the task as JSON; what it comes to, or its error, is written to the file ANSWER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ftcli.console import Terminal
from ftcli.disk import write_json
from ftcli.errors import FtcliError, Stopped
from ftcli.stages.compare.process import error_as_json
from ftcli.stages.compare.work import Task, perform

INTERRUPTED = 130


def main(task: str, answer: str) -> int:
    """Exit code: 0 where an answer was written, whatever it says; 128 + n after signal n."""
    try:
        found = {"value": perform(Task(**json.loads(task)), Terminal())}
    except Stopped as stopped:
        return stopped.exit_code
    except FtcliError as error:
        found = {"error": error_as_json(error)}
    except KeyboardInterrupt:
        return INTERRUPTED
    write_json(Path(answer), found)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
