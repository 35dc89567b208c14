"""Adapters: what is trained beside a base model that stays as it is (LoRA, DoRA, soft prompts)."""
