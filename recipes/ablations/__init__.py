"""Small studies of pre-training choices that the Gemma 3 report makes: distillation, teachers, local attention.

    python -m recipes.ablations --out runs/ablations        runs what is missing, then writes figures and tables

plan.py says what is run, corpus.py on what text, running.py trains and measures one arm, summary.py and figures.py
make tables and pictures of the measurements. docs/studies.md holds what came out.
"""
