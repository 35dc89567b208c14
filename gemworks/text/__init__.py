"""What is done to the text of an answer: stop strings. No jax here."""

from gemworks.text.stops import StopMatcher

__all__ = ["StopMatcher"]
