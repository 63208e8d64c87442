"""Optional packages."""

from importlib.util import find_spec

from utils.errors import InputError


def missing_packages(*names: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in names if find_spec(name) is None]


def require_packages(purpose: str, requirements: str, *names: str) -> None:
    """Raise InputError, with the command that installs `requirements`, if one of the packages is missing."""
    if missing := missing_packages(*names):
        raise InputError(f"{purpose} needs {' and '.join(missing)}; run `pip install -r requirements/{requirements}`")
