"""What a guard asks of an image and what it answers, as plain data. No jax.

    policies.py   the texts ShieldGemma 2 was trained with, and policies of your own
    prompt.py     an image and a policy as the ids the model reads
    verdict.py    probabilities, and what they mean at a threshold

The model that judges is in llm/guard.py.
"""

from gemworks.safety.policies import POLICIES, Policy, policies_of
from gemworks.safety.verdict import DEFAULT_THRESHOLD, Verdict, checked_threshold

__all__ = ["DEFAULT_THRESHOLD", "POLICIES", "Policy", "Verdict", "checked_threshold", "policies_of"]
