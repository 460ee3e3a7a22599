"""The command `push`: an export with its card becomes a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from eqm_video import options
from eqm_video.errors import UserError
from eqm_video.options import narrower, option
from eqm_video.sampling.folders import find_model
from eqm_video.sampling.option_groups import Dry, Modelled
from eqm_video.sampling.option_words import SHIPPED
from eqm_video.wording import counted

# Files of an export that are shared. Everything else in its folder, such as notes or pickles, stays on the machine.
SHARED = (
    "model_index.json",
    "README.md",
    "samples.gif",
    "samples.png",
    "readout.safetensors",
    "*/config.json",
    "*/*.safetensors",
    "*/*.safetensors.index.json",
    "adapters/adapter_config.json",
)
LINE_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]  # of the client's HTTP library, which releases have changed


@dataclass(frozen=True, kw_only=True)
class Push(Modelled, Dry):
    """Upload an export to the Hugging Face hub, card and samples included.

    The token is the one of `hf auth login`, or HF_TOKEN. With --dry-run the files are listed, and nothing is sent.
    Afterwards `EqMPipeline.from_pretrained("OWNER/NAME")` loads the model.
    """

    model: str = narrower(help="an export, or a finished run")  # declared again, to stand before the repository
    repository: str = option(positional=True, metavar="OWNER/NAME", help="the repository; it is made if it is missing")
    private: bool = option(False, help="make a new repository private")
    dry_run: bool = narrower(False, help="list the files, and send nothing")

    def __post_init__(self) -> None:
        options.check(self)
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise UserError(f"{self.repository} is no name of a repository ({error}): give OWNER/NAME") from error
        if "/" not in self.repository:
            raise UserError(f"{self.repository} names no owner: give OWNER/NAME, such as me/{self.repository}")


def main(words: Sequence[str]) -> int:
    """List the files and, without --dry-run, upload them; returns the exit status. UserError for a user's mistake."""
    push = options.parse(Push, words, prog="eqm-video push")
    folder = export_of(push.model)
    files = shared_files(folder)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        print(f"{path.stat().st_size:>14,}  {path.relative_to(folder)}")
    print(f"{counted(len(files), 'file')}, {total / 1e6:.1f} MB, from {folder} for {push.repository}")
    if push.dry_run:
        return 0
    print(f"uploaded: {upload(folder, push.repository, private=push.private)}")
    return 0


def export_of(model: str) -> Path:
    """The folder of an export; UserError for anything else, and for an export without a card."""
    folder = Path(find_model(model))
    if model == SHIPPED and not folder.is_dir():
        raise UserError("demo is the model that ships with the package, without a codec of its own: push one of yours")
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{model} is no export: give one, or a finished run; a checkpoint is for resuming")
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder} has no card: write README.md there, which says what the model learned from")
    return folder


def shared_files(folder: Path) -> list[Path]:
    """The files of an export that are uploaded, by name."""
    return sorted({path for pattern in SHARED for path in folder.glob(pattern) if path.is_file()})


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Make the repository if it is missing, and upload the shared files; returns its address.

    Raises UserError if the hub refuses, or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        names = [path.relative_to(folder).as_posix() for path in shared_files(folder)]
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=names, commit_message="Upload the model"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, LINE_ERROR, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        if not isinstance(error, HfHubHTTPError | LocalTokenNotFoundError):
            raise UserError(f"{api.endpoint} cannot be reached ({reason}): check the network, and try again") from error
        raise UserError(
            f"the hub did not take {repository} ({reason}): type `hf auth login`, and name an owner you may write for"
        ) from error
    return str(address)
