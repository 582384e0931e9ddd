"""What a daemon tells while it mounts, a JSON object a line, as the user sees it."""

import json
from typing import IO, Any

from lazyfs.cli.output import complain
from lazyfs.cli.progress import PullBar
from lazyfs.exit_codes import BUG


def follow(events: IO[bytes]) -> dict[str, Any]:
    """Show progress and warnings until the event that ends the wait, which is returned: `ready` or `error`.

    A daemon that died without one counts as an `error`.
    """
    with PullBar("indexing") as bar:
        for line in events:
            event: dict[str, Any] = json.loads(line)
            if "progress" in event:
                bar(*event["progress"])
            elif "warning" in event:
                complain(str(event["warning"]))
            else:
                return event
    return {"error": "the daemon died before it could mount", "code": BUG}
