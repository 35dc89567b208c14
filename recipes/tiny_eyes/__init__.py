"""Train `tiny` with eyes: the model that ships with Gemworks, which reads short texts and pictures of drawn shapes.

    python -m recipes.tiny_eyes --out DIRECTORY          train (needs the [train] extra)
    python -m recipes.tiny_eyes --evaluate               ask the model that ships about pictures it never saw

Texts, tokenizer, packing, optimizer and text evaluation are those of `recipes/tiny_standin`. Here:

    scenes       pictures and what is kept from training    questions    questions about them, with their answers
    talk         conversations about pictures               album        many pictures as tiles, and facts of them
    rows         conversations as rows of tokens            recipe       settings of a run, the eyes' architecture
    learning     a run that can be taken up again           tower        stage 1: the vision tower
    decoder      stages 2 and 3: texts; then pictures       build        all of it in order
    evaluation   right answers through serving              card         README.md of the directory
    saving       the directory

The report trains a decoder on what a frozen, pre-trained encoder sees, its output computed beforehand (section 2.1). So
does stage 3; stage 1 stands in for SigLIP's pre-training.
"""
