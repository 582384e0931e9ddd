"""Reads docs/errors.md: which errors there are, how they are worded, and with which exit code they come.

A section `## NN: ...` holds the errors of exit code NN. An error is a heading `### title` and, indented by
four spaces, the line on stderr, in which `{word}` stands for any text that is not empty; or several of which
it is one.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

_SECTION = re.compile(r"## (\d+): .+")
_PLACE = re.compile(r"\\\{[a-z ]+\\\}")


@dataclass(frozen=True, slots=True)
class DescribedError:
    """An error as the page has it.

    Attributes:
        title: its heading.
        exit_code: that of the section it stands in.
        wordings: the lines that stderr may have, with places.
        advice: what the page says of it.
    """

    title: str
    exit_code: int
    wordings: tuple[str, ...]
    advice: str

    def matches(self, line: str) -> bool:
        """Whether the program said this."""
        return any(re.fullmatch(_PLACE.sub(".+", re.escape(one)), line) for one in self.wordings)


def described_errors() -> dict[str, DescribedError]:
    """All errors of the page, by title."""
    found: dict[str, DescribedError] = {}
    for section in re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        head = _SECTION.match(section)
        for part in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
            title, _, rest = part.partition("\n")
            lines = [line[4:] for line in rest.splitlines() if line.startswith("    ")]
            words = " ".join(line for line in rest.splitlines() if line and not line.startswith("    "))
            assert head, f"{title}: stands in no section with an exit code"
            assert lines, f"{title}: has no wording"
            assert title not in found, f"{title} stands twice"
            found[title] = DescribedError(title, int(head[1]), tuple(lines), words)
    return found
