"""Fixtures of the attacks."""

from system.tools.attack_fixtures import bait, shut

__all__ = ["bait", "shut"]
