"""The base class of errors caused by input, and how a script ends on them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A file or a setting cannot be used. The message names it and says what was expected and what to do."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """For the main part of a script: InputError and OSError end it with one line and exit code 2, Ctrl-C with 130."""
    try:
        yield
    except (InputError, OSError) as error:
        rank = os.environ.get("RANK")
        message = f"error{'' if rank is None else f' (rank {rank})'}: {error}"
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
