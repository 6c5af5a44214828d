#!/bin/sh
# Installs the programs that SAEs come from, for families.py, into a folder of their own:
#     QSAE_PRODUCERS=path/to/folder PYTHON=path/to/python tests/reference/producers.sh
# Without dependencies: torch, transformers, safetensors, einops, datasets, transformer-lens and sae-lens are those
# of the Python. About 100 MB.
: "${QSAE_PRODUCERS:?the folder to install into}"
: "${PYTHON:=python3}"
exec "$PYTHON" -m pip install --quiet --no-deps --pre --target "$QSAE_PRODUCERS" \
    dictionary-learning==0.1.0 nnsight==0.3.7 zstandard python-socketio python-engineio bidict simple-websocket wsproto msgspec pillow \
    eai-sparsify==1.3.3 simple-parsing docstring-parser natsort schedulefree \
    llamascopium==2.0.0b34 more-itertools pymongo dnspython openai json-repair tomlkit cattrs attrs pydantic-settings python-dotenv jiter \
    circuit-tracer==0.5.0
