"""Models over HTTP: the OpenAI and Ollama APIs, and what a server in front of users needs.

    app.py     routes and error shapes            host.py     models by name, loaded when asked for
    openai/    /v1/..., /tokenize                 ollama/     /api/...
    run.py     sockets, signals, draining         streams.py  answers that are sent as they are made

Nothing here imports jax or the models: the command line hands in what loads one.
"""
