"""A model's name -> a local folder: a folder stays, a hub id is found in the cache or fetched."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from evomerge.errors import UserError

_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def locate(path: str, revision: str | None = None, *, relative_to: Path | None = None) -> Path:
    """The local folder of a model, or its .gguf file.

    A path to one of these (relative to `relative_to`) is used as it is; anything else of the form
    `owner/name` is taken as a model of the hub at `revision`: only safetensors, configuration and
    tokenizer files are fetched, never pickled weights or code. UserError if neither is found.
    """
    try:
        folder = (relative_to or Path()) / Path(path).expanduser()
        folder.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown ~user
        raise UserError(f"{path!r:.200}: is no path ({error}); expected a model folder") from None
    if folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf"):
        return folder
    if folder.is_file() or Path(path).is_absolute() or path.startswith((".", "~")):
        raise UserError(
            f"{path}: is no folder ({folder.absolute()}); expected a model folder or a .gguf file"
        )
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))
    except HFValidationError:
        raise UserError(
            f"{path}: is no folder ({folder.absolute()}), nor of the form owner/name, as models on "
            "the hub are"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{path}: is no folder ({folder.absolute()}), and could not be had from the model hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Without network, download it "
            "elsewhere and give the path of its folder"
        ) from error
