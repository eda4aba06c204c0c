"""What libraries say while a model is opened: nothing on stderr, and of an error one line."""

from collections.abc import Iterator
from contextlib import contextmanager


def one_line(text: object) -> str:
    """An error's or a file's text in one line that cannot steer a terminal.

    >>> one_line(ValueError("two\\n  lines\\x1b[2J"))
    'two lines[2J'
    """
    return " ".join("".join(c for c in str(text) if c.isprintable() or c.isspace()).split()) or type(text).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without warnings and progress bars on stderr, as it was before afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
