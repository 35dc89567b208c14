"""Train `tiny`, the model of a few hundred thousand parameters that ships with Gemworks until a better one does.

    python -m recipes.tiny_standin --out gemworks/assets/tiny --force

needs the [train] extra and under five minutes on two cores. All texts are made by the recipe itself:

    facts          tables of public knowledge                phrasing     wordings, and what is held out
    tasks          questions with one right answer           small_talk   greetings, names, "I cannot help with that"
    stories        plain texts                               talk         conversations of all of these
    vocabulary     the tokenizer                             corpus       texts as rows of tokens
    packing        loss masks, rows                          recipe       architecture and settings of a run
    loss           loss and predictions                      training     weights from a seed, optimizer, step
    evaluation     exact match on what is held out           build        all of it in order
    card           README.md of the directory                saving       the directory

Not here: resuming (a run is short), data from anywhere else, images.
"""
