"""`beit tokenize`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.tokenize import TokenizeConfig


def _run(config: TokenizeConfig, console: CommandConsole) -> None:
    from beitcli.engine.io.output_paths import is_stdout
    from beitcli.engine.tokenize import tokenize

    pictures = [config.map, config.codebook, config.output if config.stats and config.output != "-" else None]
    is_picture = any(map(is_stdout, pictures))
    for document in tokenize(config, console.on_event, console.stdin):
        if is_picture:  # that stream is the picture's alone
            console.tell_reason(document)
            continue
        if config.stats:
            told = () if console.wants_json else ("reason", "mae_normalized")  # stderr has it; twice `mae`
            console.print_metrics({name: value for name, value in document.items() if name not in told})
        elif console.wants_json:
            console.print_json(document)
        elif "tokens" in document and (config.map or config.codebook):
            continue  # they are in the picture
        elif "tokens" in document:
            first = " ".join(str(token) for token in document["tokens"][:8])
            console.print_line(f"{document['path']}  {document['grid'][0]} x {document['grid'][1]} tokens: {first} ...")
        else:
            console.print_line(f"{document['path']}  {document.get('output') or 'error: ' + document['error']}")


DECLARATION = Declaration(
    config=TokenizeConfig,
    examples=(
        "beit tokenize photo.jpg --tokenizer runs/tokenizer",
        "beit tokenize photos/ --tokenizer runs/tokenizer -o tokens.jsonl --reconstruct pictures/",
        "beit tokenize photo.jpg --tokenizer runs/tokenizer --map tokens.png",
        "beit tokenize photos/ --tokenizer runs/tokenizer --stats -o usage.png --codebook codes.png",
        "find . -name '*.jpg' -print0 | beit tokenize -0 - --tokenizer runs/tokenizer | head -3",
        "beit tokenize --decode tokens.jsonl --tokenizer runs/tokenizer -o pictures/",
    ),
    run=_run,
)
