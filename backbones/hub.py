"""Download weights from the Hugging Face hub, with an error message for each kind of failure that says what to do."""

from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from utils.weights import WeightsError


class MissingWeights(WeightsError):
    """The weights are not on this machine and cannot be downloaded. The message says why and how to get them.

    found: the teacher's release, if only its landmark network is missing.
    """

    found: Any = None


_TOKEN = "set the environment variable HF_TOKEN to a token of your account, or run `hf auth login`"
_BY_HAND = (
    "With a network, run `hf download {repository} {files} --revision {revision} --local-dir FOLDER`, copy FOLDER "
    "here and set {keys.local}"
)
# Error of huggingface_hub -> what is wrong and what to do. The first match counts, so subclasses come before their base
# classes. HTTPError stands for broken connections, RuntimeError for errors of hf_xet, the storage client.
_FAILURES: dict[type[Exception], str] = {
    GatedRepoError: f"is gated: accept its terms on its page, then {_TOKEN}",
    RevisionNotFoundError: "has no revision {revision!r}: {keys.revision} is a branch, a tag or a commit",
    RepositoryNotFoundError: f"does not exist or is private: check {{keys.repository}}; for a private one, {_TOKEN}",
    HFValidationError: "is not the name of a repository, which is owner/name: check {keys.repository}",
    LocalEntryNotFoundError: "is not in the cache, and the hub cannot be reached ({reason}). {by_hand}",
    EntryNotFoundError: "has no {file} at {revision!r}, so it is no {keys.kind}: check {keys.repository}",
    HfHubHTTPError: f"cannot be downloaded ({{reason}}). For an error 401, {_TOKEN}. {{by_hand}}",
    OSError: "cannot be downloaded ({reason}). {by_hand}",
    HTTPError: "cannot be downloaded ({reason}). {by_hand}",
    RuntimeError: "cannot be downloaded ({reason}). {by_hand}",
}
# Mistakes in the config: another machine or a later attempt would not help.
_MISTAKES = (RevisionNotFoundError, HFValidationError)


class Keys(NamedTuple):
    """What messages name: the setting for a FOLDER on this machine, the keys of a repository and of its revision, and
    what the repository should be."""

    local: str
    repository: str
    revision: str
    kind: str


def download(repository: str, file: str, revision: str, cache: str | None, files: tuple[str, ...], keys: Keys) -> Path:
    """Download a file of a repository if it is not in the cache yet. Returns its path in the cache.

    revision: a branch, a tag or a commit. cache: the folder of the cache; None: the one of huggingface_hub. files: the
    files that the user has to download by hand if this fails. keys: what messages name. Raises WeightsError for a
    mistake in the config, and MissingWeights for all other failures.
    """
    try:
        return Path(hf_hub_download(repository, file, revision=revision, cache_dir=cache))
    except tuple(_FAILURES) as error:
        failure = next(text for failed, text in _FAILURES.items() if isinstance(error, failed))
        by_hand = _BY_HAND.format(repository=repository, files=" ".join(files), revision=revision, keys=keys)
        message = failure.format(revision=revision, file=file, reason=first_line(error), by_hand=by_hand, keys=keys)
        raised = WeightsError if isinstance(error, _MISTAKES) else MissingWeights
        raise raised(f"{repository}: {message}") from error


def commit_of(downloaded: Path, file: str) -> str:
    """The commit of a file that `download` returned: the cache keeps files under snapshots/<commit>."""
    return downloaded.parents[file.count("/")].name


def first_line(error: Exception) -> str:
    """The first line of the message of the error; of its cause if the hub was not reached and the cache is empty."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
