"""The commands: `gemworks VERB`. One file per verb; the only package that prints."""
