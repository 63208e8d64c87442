"""Upload a folder to the Hugging Face hub, with an error message for each kind of failure that says what to do."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from backbones.hub import first_line
from utils.errors import InputError

_TOKEN = (
    "set the environment variable HF_TOKEN to a token with the permission to write "
    "(https://huggingface.co/settings/tokens), or run `hf auth login`"
)
_AGAIN = "run the same command again; files that have already arrived are not sent again"


def require_token() -> None:
    """Raise InputError if there is no token for uploads. It is not sent anywhere."""
    if get_token() is None:
        raise InputError(f"--upload: no token of your account on the Hugging Face hub; {_TOKEN}")


def upload(folder: Path, repository: str, private: bool) -> str:
    """Create the repository owner/name if it does not exist, and make the folder's files its newest commit.

    Returns its address. Raises InputError; the repository then has either all new files or none. If `private`, a public
    repository is refused.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise InputError(
                f"{repository}: exists and is public, so --private has no effect; make it private on its page "
                "(Settings), name another repository, or upload without --private"
            )
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by deploy/to_hub.py")
    except OfflineModeIsEnabled as error:
        raise InputError(f"{repository}: not uploaded, because HF_HUB_OFFLINE is set; unset it") from error
    except (HfHubHTTPError, HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{repository}: not uploaded: {_describe(error, repository)}. {folder} is complete") from error
    return url


def _describe(error: Exception, repository: str) -> str:
    """What is wrong and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        return f"the hub does not accept the token ({first_line(error)}); {_TOKEN}"
    if status == 403:
        owner = repository.partition("/")[0]
        return f"the token may not write to repositories of {owner} ({first_line(error)}); {_TOKEN}"
    if isinstance(error, ValueError):  # a bad request, such as metadata in the card that the hub does not know
        return f"the hub refuses it ({' '.join(str(error).split())}); if that is about the metadata, check --license"
    cause = error.__cause__ or error
    return f"the connection failed ({first_line(cause)}); {_AGAIN}"
