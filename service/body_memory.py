"""How much memory the bodies of requests take together.

Two bounds. A hard one: past `serve.max_queue_bytes` a request is refused. And a soft one: a body that would only wait
for those before it is not read yet, but left to the kernel and its sender, so that a queue of large photos costs
little. A sender that is slow gives up its turn after a moment, so it keeps nobody waiting.

Used in the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

from perennial.errors import Overloaded

_AHEAD_BYTES: Final = 16 * 2**20
_PATIENCE_SECONDS: Final = 0.25


class BodyMemory:
    """Counts the bytes of all bodies that are held.

    Args:
        most: the hard bound, in bytes.
        least_turns: so many bodies are read whatever their size: what the inference process works on and a few more.
    """

    def __init__(self, most: int, least_turns: Callable[[], int]) -> None:
        self._most = most
        self._least = least_turns
        self._held = 0
        self._turns = 0
        self._claimed = 0
        self._waiting: deque[tuple[Hold, asyncio.Future[None]]] = deque()

    def hold(self, claim: int) -> Hold:
        """For one request, `async with`: it waits for its turn, and ends with the request.

        Args:
            claim: as many bytes as its body will be, or may be.
        """
        return Hold(self, claim)

    @property
    def held(self) -> int:
        """Bytes that are in memory now."""
        return self._held

    @property
    def waiting(self) -> int:
        """Requests whose bodies are not read yet."""
        return len(self._waiting)

    def _add(self, count: int) -> None:
        if self._held + count > self._most:
            raise Overloaded(
                f"as many bytes of images as may be, {self._most:,}, are being worked on; try again soon, or send "
                "smaller images"
            )
        self._held += count

    def _has_room(self, claim: int) -> bool:
        return self._turns < self._least() or self._claimed + claim <= _AHEAD_BYTES

    def _take_turn(self, hold: Hold) -> None:
        self._turns += 1
        self._claimed += hold.claim
        hold.has_turn = True

    def _give_turn(self, hold: Hold) -> None:
        hold.has_turn = False
        self._turns -= 1
        self._claimed -= hold.claim
        while self._waiting and self._has_room(self._waiting[0][0].claim):
            following, turn = self._waiting.popleft()
            if not turn.done():  # else it was given up meanwhile
                self._take_turn(following)
                turn.set_result(None)


class Hold:
    """One request's part of the memory."""

    __slots__ = ("_lapse", "_memory", "_received", "claim", "has_turn", "waited")

    def __init__(self, memory: BodyMemory, claim: int) -> None:
        self._memory = memory
        self._received = 0
        self._lapse: asyncio.TimerHandle | None = None
        self.claim = claim
        self.has_turn = False
        self.waited = 0.0  #: seconds for its turn

    async def __aenter__(self) -> Hold:
        memory = self._memory
        if not memory._waiting and memory._has_room(self.claim):
            memory._take_turn(self)
            return self
        turn = asyncio.get_running_loop().create_future()
        memory._waiting.append((self, turn))
        began = time.perf_counter()
        try:
            await turn
        except asyncio.CancelledError:
            if self.has_turn:
                memory._give_turn(self)
            raise
        self.waited = time.perf_counter() - began
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
        self._memory._held -= self._received
        if self.has_turn:
            self._memory._give_turn(self)

    def add(self, count: int, *, more: bool) -> None:
        """So many bytes of the body have arrived; `more` are to come.

        Raises:
            Overloaded: all requests together hold too much.
        """
        self._memory._add(count)
        self._received += count
        if more and self._lapse is None:
            self._lapse = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._give_up_turn)
        elif not more and self._lapse is not None:
            self._lapse.cancel()

    def _give_up_turn(self) -> None:
        if self.has_turn:
            self._memory._give_turn(self)
