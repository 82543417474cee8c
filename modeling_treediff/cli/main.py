"""The command `treediff`: finds the subcommand, reads its options, runs it, and says in one line what went wrong.

Only the subcommand that is called is imported, its options before what it runs.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import modeling_treediff
from modeling_treediff.files.standard_streams import lossy_output

SUBCOMMANDS = {
    "build-tree": "build a vocabulary tree for a tokenizer, from text or embeddings",
    "inspect-tree": "show a tree's shape, its clusters, and what it tells about a text",
    "plan-memory": "predict the memory of training, without a GPU",
    "train": "train a model, or train a saved one on",
    "evaluate": "measure the likelihood of texts: perplexity, bits per byte",
    "analyze-errors": "show where a tree model errs, beside a flat one",
    "generate": "write text with a saved model",
    "app": "serve a page on which a model writes",
    "convert": "start a tree model from a BERT-, GPT-2- or LLaMA-style checkpoint",
    "push": "upload a model or a tree to the Hugging Face Hub",
}
EXTRAS = {  # what the subcommands need; the others "train"
    **dict.fromkeys(("build-tree", "inspect-tree", "convert", "push"), "build"),
    **dict.fromkeys(("evaluate", "analyze-errors"), "eval"),
    **dict.fromkeys(("generate", "app"), "demo"),
}
# Whose result is what they print, as that of each --dry-run is.
PRINTING = ("inspect-tree", "plan-memory", "evaluate", "analyze-errors", "generate")
HELP = """usage: treediff SUBCOMMAND [options]

Tree-structured diffusion language models: build, train, measure, write, share.

subcommands:
{listed}

`treediff SUBCOMMAND --help` lists the options of each, with examples."""
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)  # what a user can do something about


def main(line: Sequence[str] | None = None) -> None:
    """Run a command line, by default this process's own.

    Raises:
        SystemExit: after `--help` (0), for options that cannot be (2), for an error that a user can mend (1).

    """
    line = list(sys.argv[1:] if line is None else line)
    with lossy_output() as output:
        name = read_subcommand(line[:1])
        options = run_subcommand(name, line[1:])
        output.flush()
        lost = output.error
        if lost is not None and not isinstance(lost, BrokenPipeError):  # a reader may leave when it has enough
            said = f"treediff {name}: not all could be printed: {lost.strerror}"
            only_prints = name in PRINTING or any(getattr(group, "dry_run", False) for group in options)
            sys.exit(said) if only_prints else print(said, file=sys.stderr)


def run_subcommand(name: str, line: Sequence[str]) -> tuple[object, ...]:
    """Run a subcommand with its options, and return these; errors as of `main`."""
    module, prog = name.replace("-", "_"), f"treediff {name}"
    try:
        options = read_options(f"modeling_treediff.cli.options.{module}", prog, line)
        if not sys.stderr.isatty():
            hide_bars()
        modeling_treediff.register()
        importlib.import_module(f"modeling_treediff.cli.{module}").run(*options)
        return options
    except EXPECTED as error:
        from modeling_treediff.text.token_kinds import printable

        lacks = isinstance(error, ModuleNotFoundError)
        remedy = f": pip install 'modeling-treediff[{EXTRAS.get(name, 'train')}]'" if lacks else ""
        sys.exit(f"{prog}: error: {printable(' '.join(str(error).split()))}{remedy}")


def hide_bars() -> None:
    """Leave out the progress bars of libraries, which off a terminal are a line for each of their states."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def read_subcommand(words: Sequence[str]) -> str:
    """Return the subcommand that the first word names; without one, help or a line that says what is wrong."""
    word = words[0] if words else ""
    if word in SUBCOMMANDS:
        return word
    if word in ("-h", "--help"):
        listed = "\n".join(f"  {name:<16}{summary}" for name, summary in SUBCOMMANDS.items())
        print(HELP.format(listed=listed))
        sys.exit(0)
    near = difflib.get_close_matches(word, SUBCOMMANDS, 1, cutoff=0.0)
    said = f"unknown subcommand {word!r}; the nearest is {near[0]}" if word else "name a subcommand"
    print(f"treediff: error: {said} (--help lists all)", file=sys.stderr)
    sys.exit(2)


def read_options(module: str, prog: str, line: Sequence[str]) -> tuple[object, ...]:
    """Return what a command line says, as instances of the option dataclasses of a module."""
    options = importlib.import_module(module)
    from .options.parser import OptionParser

    parser = OptionParser(options.OPTIONS, prog, options.__doc__ or "", options.EXAMPLES.strip("\n"))
    return parser.parse(line, getattr(options, "check", None))


if __name__ == "__main__":
    main()
