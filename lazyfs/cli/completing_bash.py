"""Completion in bash, whose words end at ":", "=" and "@": the names of images are put together again.

`COMP_WORDS` has each of these as a word of its own (bash(1), COMP_WORDBREAKS), and what is answered takes
the place of what follows the last of them.
"""

import os
import re
from itertools import pairwise
from typing import Final

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_BREAK: Final = re.compile(r"[:=@]+")


class _Bash(BashComplete):
    """As click's, with words as they were typed."""

    _before = ""  # of the last word, what bash does not want to be told again

    def get_completion_args(self) -> tuple[list[str], str]:
        words, number = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        *typed, last = joined(words[: number + 1])
        if number >= len(words):  # a new word is begun
            return [*typed, last][1:], ""
        self._before = last.removesuffix(words[number]) if not _BREAK.fullmatch(words[number]) else last
        return typed[1:], last

    def format_completion(self, item: CompletionItem) -> str:
        if item.type == "plain":
            item = CompletionItem(item.value.removeprefix(self._before))
        return super().format_completion(item)


def joined(words: list[str]) -> list[str]:
    """Words of a command line as they were typed, from those of bash; the command's name is none of them."""
    found = words[:1]
    for before, word in pairwise(words):
        if len(found) > 1 and (_BREAK.fullmatch(word) or _BREAK.fullmatch(before)):
            found[-1] += word
        else:
            found.append(word)
    return found


def mend_bash() -> None:
    """Have click complete so in bash."""
    add_completion_class(_Bash)
