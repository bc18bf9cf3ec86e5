"""`beit tokenize`."""

from __future__ import annotations

from beitcli.cli.console import Shell
from beitcli.cli.options import Command
from beitcli.config.tokenize import TokenizeConfig


def _run(config: TokenizeConfig, shell: Shell) -> None:
    from beitcli.engine.tokenize import tokenize

    for document in tokenize(config, shell.on_event, shell.stdin):
        if config.stats:
            shell.figures(document)
        elif shell.wants_json:
            shell.document(document)
        elif "tokens" in document:
            first = " ".join(str(token) for token in document["tokens"][:8])
            shell.line(f"{document['path']}  {document['grid'][0]} x {document['grid'][1]}  {first} ...")
        else:
            shell.line(f"{document['path']}  {document.get('output') or 'error: ' + document['error']}")


COMMAND = Command(
    config=TokenizeConfig,
    summary="Turn images into visual tokens, and back.",
    examples=(
        "beit tokenize photo.jpg --tokenizer runs/tokenizer",
        "beit tokenize photos/ --tokenizer runs/tokenizer -o tokens.jsonl --reconstruct pictures/",
        "find . -name '*.jpg' -print0 | beit tokenize -0 - --tokenizer runs/tokenizer | head -3",
        "beit tokenize --decode tokens.jsonl --tokenizer runs/tokenizer -o pictures/",
    ),
    face=_run,
    panel="Look",
)
