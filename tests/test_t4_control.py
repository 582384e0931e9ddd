"""Questions to the daemon of a mount."""

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from lazyfs.control import answer_questions
from lazyfs.errors import MountError
from lazyfs.mount_states import MountFacts, MountStates


@pytest.mark.expect_log("a bug in the answer to stats")
async def test_a_bug_in_an_answer_ends_no_mount(tmp_path) -> None:
    facts = MountFacts(str(tmp_path / "mount"), "image", "sha256:" + "0" * 64, "fuse", 1)
    states = MountStates(tmp_path)

    async def answer(question: str) -> Mapping[str, Any]:
        if question == "stats":
            raise RuntimeError("dictionary changed size during iteration")
        return {"asked": question}

    def ask(question: str) -> Mapping[str, Any]:
        return states.ask(tmp_path / "mount", question)

    with states.registered(facts) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_questions, listener, answer)
            with pytest.raises(MountError, match="does not answer"):
                await trio.to_thread.run_sync(ask, "stats")
            assert await trio.to_thread.run_sync(ask, "explain") == {"asked": "explain"}
            nursery.cancel_scope.cancel()
