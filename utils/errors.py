"""The one base of all errors that bad input causes, and how a script ends on one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something from outside (a file, a setting) cannot be used; the message names it, what was expected, the fix."""


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Around a script's main: an InputError or an unusable path ends it with one line and code 2, Ctrl-C with 130."""
    try:
        yield
    except (InputError, OSError) as error:
        rank = os.environ.get("RANK")
        message = f"error{'' if rank is None else f' (rank {rank})'}: {error}"
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
