"""What a reader of calls has found: text, calls in pieces, whole calls, and a call that broke off."""

from gemworks.text.toolcalls.call import Call, CallDelta, PartialCall, new_call_id


class Collected:
    """What a reader tells: text, and calls in pieces."""

    def __init__(self):
        self.calls: list[Call] = []
        self.partial: PartialCall | None = None
        self._texts: list[str] = []
        self._deltas: list[CallDelta] = []
        self._held: int | None = None  # deltas from here on may still be taken back
        self._before = (0, "", False)  # what to go back to then
        self._space = ""  # white space that waits for what follows it
        self._is_after_call = False
        self._open: tuple[str, str] | None = None  # id and name of the call that is being read
        self._told: list[str] = []  # its arguments
        self._untold: list[str] = []  # those that came since the last push

    def take(self) -> tuple[str, list[CallDelta]]:
        """Return what came since the last time and is sure."""
        self._flush()
        sure = len(self._deltas) if self._held is None else self._held
        told = "".join(self._texts), self._deltas[:sure]
        self._texts, self._deltas = [], self._deltas[sure:]
        self._held = None if self._held is None else 0
        return told

    def say(self, text: str) -> None:
        """Add text."""
        whole = self._space + text
        said = whole.rstrip()
        self._space = whole[len(said) :]
        if said:
            self._texts.append(said)
            self._is_after_call = False

    def say_nothing(self) -> None:
        """Drop white space that waits: it stands between a call and its fence."""
        self._space = ""

    def finish(self) -> None:
        """Add what waited: there is no more."""
        if not self._is_after_call:
            self._texts.append(self._space)
        self._space = ""

    def begin(self, name: str) -> None:
        """A call begins."""
        self._open, self._told = (new_call_id(), name), []
        self._space, self._is_after_call = "", True
        self._deltas.append(CallDelta(len(self.calls), id=self._open[0], name=name))

    def emit(self, json_text: str) -> None:
        """Add a piece of the call's arguments."""
        self._told.append(json_text)
        self._untold.append(json_text)

    def end(self) -> None:
        """The call is whole."""
        assert self._open is not None
        self._flush()
        call_id, name = self._open
        self.calls.append(Call(name, "".join(self._told), call_id))
        self._open = None

    def cut(self, source: str) -> None:
        """The call is not going to be whole."""
        assert self._open is not None
        self._flush()
        call_id, name = self._open
        self.partial = PartialCall(name, "".join(self._told), source, call_id)
        self._open = None

    @property
    def is_open(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._open is not None

    def hold(self, *, tells: bool) -> None:
        """From here on calls may be taken back; with `tells` they are told all the same."""
        self._flush()
        self._before = len(self.calls), self._space, self._is_after_call
        self._held = None if tells else len(self._deltas)

    def keep(self) -> None:
        """Nothing is taken back any more."""
        self._held = None

    def take_back(self) -> None:
        """Forget the calls since `hold`."""
        if self._held is not None:
            del self._deltas[self._held :]
        count, self._space, self._is_after_call = self._before
        del self.calls[count:]
        self._held, self._open, self._untold = None, None, []

    @property
    def num_held(self) -> int:
        """Whole calls since `hold`."""
        return len(self.calls) - self._before[0]

    def _flush(self) -> None:
        if self._untold:
            self._deltas.append(CallDelta(len(self.calls), "".join(self._untold)))
            self._untold = []
