"""Downloads models from the Hugging Face Hub: only the required files of a repository."""

import glob
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mlm_infer.errors import BundleError, DependencyError, ModelError, first_line

__all__ = ["fetch", "is_hub_id"]

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a repository, such as `distilbert/distilroberta-base`."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(
    repository: str,
    *,
    revision: str | None,
    local_files_only: bool,
    choose: Callable[[Iterable[str]], list[str]],
    anchors: Sequence[str],
) -> Path:
    """Return a local folder with the files of a repository, downloading those that are not in the Hub cache.

    Args:
        repository: A Hub id.
        revision: Branch, tag or commit; None is the main branch.
        local_files_only: Use the Hub cache only, as with the environment variable `HF_HUB_OFFLINE`.
        choose: Selects the required files of the repository.
        anchors: Top-level files, at least one of which is always selected.

    Raises:
        BundleError: The repository does not exist, or cannot be downloaded.
        ModelError: It contains nothing that can be opened.
        DependencyError: huggingface-hub is not installed.
    """
    try:
        from huggingface_hub import constants, try_to_load_from_cache
    except ImportError as error:
        raise DependencyError(
            f"there is no folder {repository}, and to look for it on the Hub needs huggingface-hub; "
            "install it with: pip install huggingface-hub"
        ) from error
    forbidden = "local_files_only is set" if local_files_only else "HF_HUB_OFFLINE is set"
    reason = forbidden
    if not local_files_only and not constants.HF_HUB_OFFLINE:
        try:
            return _download(repository, revision, choose)
        except _UnreachableError as error:
            reason = str(error)
    # Offline, snapshot_download would fail because of files that were never selected, so look for an anchor instead.
    copies = [try_to_load_from_cache(repository, name, revision=revision) for name in anchors]
    found = next((Path(each).parent for each in copies if isinstance(each, str)), None)
    if found is None:
        raise BundleError(
            f"there is no folder {repository}, and no copy of such a model from the Hub on this machine ({reason}); "
            f"to write a bundle: mlm-export MODEL {repository}"
        )
    if reason != forbidden:
        logger.warning("the Hub cannot be reached (%s); taking the copy of %s on this machine", reason, repository)
    return found


class _UnreachableError(Exception):
    """The Hub cannot be reached, so a copy on this machine may serve; the message is the reason."""


def _download(repository: str, revision: str | None, choose: Callable[[Iterable[str]], list[str]]) -> Path:
    """Download the files that `choose` selects, or take them from the Hub cache if they are current.

    Raises:
        BundleError: The repository or revision does not exist, access is denied, or the cache cannot be written.
        ModelError: The repository contains nothing that can be opened.
        _UnreachableError: The Hub did not answer.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        wanted = choose(HfApi().list_repo_files(repository, revision=revision))
        if not wanted:
            raise ModelError(f"{repository} on the Hub holds no bundle, no ONNX export and no checkpoint to export")
        patterns = [glob.escape(each) for each in wanted]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise BundleError(
            f"{repository} is a gated repository on the Hub: accept its terms on its page, then run hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BundleError(
            f"there is no folder {repository}, and the Hub has no such model, or keeps it private (hf auth login); "
            f"to write a bundle: mlm-export MODEL {repository}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BundleError(f"{repository} has no revision {revision!r} on the Hub; see its branches and tags") from error
    except OSError as error:
        # With a file name it is the local disk; without one it is the network.
        if error.filename:
            raise BundleError(
                f"the copy of {repository} cannot be written ({error}); set HF_HOME to another folder"
            ) from error
        raise _UnreachableError(first_line(error)[:200]) from error
    except Exception as error:  # the client's exceptions depend on its version and share no base class
        if not type(error).__module__.startswith(("huggingface_hub", "requests", "httpx", "urllib3")):
            raise
        raise _UnreachableError(first_line(error)[:200]) from error
