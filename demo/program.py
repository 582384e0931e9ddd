"""The program in the demo's image: it loads some of the standard library and reads one record of its data."""

import decimal
import hashlib
import json
import statistics
import sys
from pathlib import Path


def main() -> None:
    """Print, as JSON, which Python this is and what the record holds."""
    start, size = int(sys.argv[1]), int(sys.argv[2])
    with Path(__file__).with_name("data.bin").open("rb") as data:
        data.seek(start)
        record = data.read(size)
    answer = {
        "python": sys.version.split()[0],
        "record": hashlib.sha256(record).hexdigest(),
        "mean": str(decimal.Decimal(statistics.fmean(record)).quantize(decimal.Decimal("0.01"))),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
