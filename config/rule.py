"""The kinds of values that a config key may have.

A rule says what its key means, which values are allowed, and how a string on the command line becomes a value. The
table of all rules is config/rules.py.
"""

import ast
import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

LARGEST_INTEGER = 2**63 - 1
LONGEST_COMPARED_NAME = 100  # characters; the search for a similar name is slow for longer names


@dataclass(frozen=True)
class Rule:
    """The base of all kinds.

    meaning: what the key controls, its unit and its special values; the comment of the key in config/config.py.
    is_path: whether the value is the path of a file or folder; load_config makes it absolute (config/paths.py).
    or_repository: whether such a value may also be hf://owner/name, a repository on the Hugging Face hub.
    is_flag: whether the value is True or False. placeholder: the word for the value in the help of the scripts.
    """

    meaning: str
    is_path: ClassVar[bool] = False
    or_repository: ClassVar[bool] = False
    is_flag: ClassVar[bool] = False
    placeholder: ClassVar[str] = "VALUE"

    @property
    def allowed(self) -> str:
        """The allowed values in words; completes the sentence "the value must be ..."."""
        raise NotImplementedError

    def allows(self, value: Any) -> bool:
        """Whether the key may have the value `value`."""
        raise NotImplementedError

    def refusal(self, value: Any) -> str:
        """Why the value is not allowed; completes the sentence "the value ..."."""
        return f"must be {self.allowed}"

    def normalise(self, value: Any) -> Any:
        """The form in which a config keeps the value, which may be of any kind: tuples become lists."""
        return list(value) if isinstance(value, tuple) else value

    def parse(self, text: str) -> Any:
        """The value of a string on the command line. It is not checked here: see `allows`.

        The string is read as a Python literal; true, false and none may be lower case. Any other string is returned
        unchanged.
        """
        literal = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        try:
            return ast.literal_eval(literal)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return text


@dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    is_flag: ClassVar[bool] = True
    allowed: ClassVar[str] = "True or False"

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Number(Rule):
    """A finite number. The four limits are optional; with `or_none` the value may also be None."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    or_none: bool = False
    placeholder: ClassVar[str] = "N"

    @property
    def allowed(self) -> str:
        signs = {">=": self.at_least, ">": self.above, "<=": self.at_most, "<": self.below}
        limits = " and ".join(f"{sign} {limit}" for sign, limit in signs.items() if limit is not None)
        return f"a number {limits}".rstrip() + (" or None" if self.or_none else "")

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.or_none
        return (
            _is_finite_number(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Integer(Rule):
    """An integer of at least `at_least` that fits in 64 bits; with `or_none` the value may also be None."""

    at_least: int = 0
    or_none: bool = False
    placeholder: ClassVar[str] = "N"

    @property
    def allowed(self) -> str:
        return f"an integer >= {self.at_least}" + (" or None" if self.or_none else "")

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.or_none
        return _is_number(value) and isinstance(value, int) and self.at_least <= value <= LARGEST_INTEGER


@dataclass(frozen=True)
class Choice(Rule):
    """One of the names in `names`."""

    names: Collection[str] = ()
    placeholder: ClassVar[str] = "NAME"

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(self.names)

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class NetworkName(Choice):
    """One of the names in `names`, or LIBRARY/NAME, a network of one of the `libraries`.

    networks: function from a library to the names of its networks. It imports the library, so it is called only if the
    value names the library. It may raise ImportError or RuntimeError (a torchvision for another torch).
    """

    libraries: Collection[str] = ()
    networks: Callable[[str], list[str]] = lambda library: []

    @property
    def allowed(self) -> str:
        return ", ".join([super().allowed, *(f"{library}/NAME" for library in self.libraries)])

    def allows(self, value: Any) -> bool:
        return super().allows(value) or (self._in_library(value) and not self._refusal(*value.split("/", 1)))

    def refusal(self, value: Any) -> str:
        return self._refusal(*value.split("/", 1)) if self._in_library(value) else super().refusal(value)

    def _in_library(self, value: Any) -> bool:
        return isinstance(value, str) and "/" in value and value.partition("/")[0] in self.libraries

    def _refusal(self, library: str, name: str) -> str:
        """Why the network `name` of the library cannot be used; "" if it can."""
        try:
            known = self.networks(library)
        except (ImportError, RuntimeError) as error:
            return (
                f"{library} cannot be imported ({error}); pip install -r requirements/requirement.txt installs "
                "torchvision, requirements/timm.txt timm"
            )
        if name in known:
            return ""
        similar = most_similar(name, known)
        return f"no such network in {library}" + (f", the most similar is {similar!r}" if similar else "")


@dataclass(frozen=True)
class NameList(Rule):
    """A list of names; on the command line also a,b,c or [a,b,c]."""

    allowed: ClassVar[str] = "a list of names, for example a,b,c"
    placeholder: ClassVar[str] = "A,B"

    def allows(self, value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) and name for name in value)

    def parse(self, text: str) -> Any:
        value = super().parse(text)
        if isinstance(value, str):
            return [name.strip() for name in _without_brackets(value).split(",") if name.strip()]
        return value


@dataclass(frozen=True)
class NumberList(Rule):
    """A list of finite numbers; of positive ones with `positive`."""

    positive: bool = False

    @property
    def allowed(self) -> str:
        return f"a list of {'positive ' if self.positive else ''}numbers, for example [8,14]"

    def allows(self, value: Any) -> bool:
        return (
            isinstance(value, list)
            and all(map(_is_finite_number, value))
            and (not self.positive or all(number > 0 for number in value))
        )


@dataclass(frozen=True)
class Text(Rule):
    """Any string."""

    allowed: ClassVar[str] = "a string"
    placeholder: ClassVar[str] = "TEXT"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str)

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Path(Rule):
    """The path of a file or folder; it must end in `suffix`. With `may_be_empty` it may be "", which means no path.

    is_output: whether it is written. Relative paths of inputs and outputs start at different folders (config/paths.py).
    """

    suffix: str = ""
    may_be_empty: bool = True
    is_output: bool = False
    is_path: ClassVar[bool] = True
    placeholder: ClassVar[str] = "PATH"

    @property
    def allowed(self) -> str:
        ending = f" that ends in {self.suffix}" if self.suffix else ""
        return f"a path{ending}" + (", or empty" if self.may_be_empty else "")

    def allows(self, value: Any) -> bool:
        if value == "":
            return self.may_be_empty
        return isinstance(value, str) and value.endswith(self.suffix)

    def parse(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class PathList(Rule):
    """A list of paths that end in `suffix`; as a string, also in a preset, one path or a,b,c.

    is_output: whether they are written, as in Path.
    """

    suffix: str = ""
    is_output: bool = False
    is_path: ClassVar[bool] = True
    placeholder: ClassVar[str] = "PATH"

    @property
    def allowed(self) -> str:
        ending = f" that ends in {self.suffix}" if self.suffix else ""
        return f"a path{ending}, several paths separated by commas, or empty"

    def allows(self, value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(path, str) and path and path.endswith(self.suffix) for path in value
        )

    def normalise(self, value: Any) -> Any:
        return self.parse(value) if isinstance(value, str) else super().normalise(value)

    def parse(self, text: str) -> Any:
        value = super().parse(text)
        if isinstance(value, list | tuple):
            return value
        joined = _without_brackets(value if isinstance(value, str) else text)
        # A comma that follows no suffix belongs to a path.
        paths = re.split(rf"(?<={re.escape(self.suffix)})\s*,", joined)
        return [path.strip() for path in paths if path.strip()]


@dataclass(frozen=True)
class Weights(Path):
    """The path of a file or folder with weights, or a repository on the hub; may be empty."""

    allowed: ClassVar[str] = "a path, hf://owner/name, hf://owner/name@revision, or empty"
    or_repository: ClassVar[bool] = True


def _without_brackets(text: str) -> str:
    return text[1:-1] if text[:1] + text[-1:] == "[]" else text


def _is_number(value: Any) -> bool:
    """Whether the value is a number. True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    """Whether the value is a number, neither infinite nor NaN, in the range of a float."""
    return _is_number(value) and abs(value) <= sys.float_info.max


def most_similar(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is most similar to `name`, if any is similar enough."""
    lower = {other.lower(): other for other in known}
    similar = difflib.get_close_matches(name[:LONGEST_COMPARED_NAME].lower(), lower, n=1, cutoff=0.5)
    return lower[similar[0]] if similar else None
