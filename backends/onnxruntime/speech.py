"""The text of a reply, token by token."""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What a decoder puts where the bytes of a character are not all there."""


class Speech:
    """Text as its tokens come: a character that spans tokens waits for its last one, what may become a stop text waits
    until it has or has not, and from a stop text on nothing is told.

    >>> letters = lambda tokens: "".join(map(chr, tokens))
    >>> speech = Speech(letters, ("END",))
    >>> [speech.more(ord(letter)) for letter in "nEE-END!"], speech.stopped
    (['n', '', 'E', 'E-', '', '', '', ''], True)
    >>> speech.rest()
    ''
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        # Decoded from `_from`, a little before what was told, for a decoder may treat the first token apart.
        self._from = self._told = 0
        self._held = ""

    def more(self, token: int) -> str:
        """What can be told after one more token."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        before, now = self._decode(self._tokens[self._from : self._told]), self._decode(self._tokens[self._from :])
        if now.endswith(UNFINISHED):
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return self._tell(now[len(before) :])

    def rest(self) -> str:
        """What was waiting, at the end of the reply."""
        if self.stopped:
            return ""
        before, now = self._decode(self._tokens[self._from : self._told]), self._decode(self._tokens[self._from :])
        told = self._tell(now[len(before) :])
        if not self.stopped:
            told, self._held = told + self._held, ""
        self._from = self._told = len(self._tokens)
        return told

    def _tell(self, text: str) -> str:
        self._held += text
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            told, self._held, self.stopped = self._held[: min(found)], "", True
            return told
        waits = max((_begun(self._held, stop) for stop in self._stop), default=0)
        told = self._held[: len(self._held) - waits]
        self._held = self._held[len(told) :]
        return told


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of a stop text.

    >>> _begun("the EN", "END"), _begun("the END of", "END")
    (2, 0)
    """
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
