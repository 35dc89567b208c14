"""Token ids in, events out: sequences, their cache, compiled steps and sampling. Text lives above."""
