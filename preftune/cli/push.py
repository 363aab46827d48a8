"""`preftune push`: a model folder to the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_EPILOG = """examples:
  preftune push runs/simpo me/simpo-8b
  preftune push models/merged my-team/assistant --private
  preftune push runs/simpo me/simpo-8b --update --message "200 steps more"

The access token is that of `hf auth login` or HF_TOKEN. Sent are weights in safetensors, config, tokenizer,
model card, recipe, log, plots and samples; checkpoints, optimizer states and pickles stay.
"""


def main(arguments: Sequence[str]) -> int:
    """Upload, and print the address.

    Raises:
        ModelError: there is no model, no token, no permission, or the repository exists.
    """
    options = _parser().parse_args(arguments)
    from pathlib import Path

    from huggingface_hub.utils import disable_progress_bars

    from preftune.model.place import model_folder
    from preftune.train.push import published_files, push_folder

    folder = model_folder(Path(options.folder).expanduser())
    if options.dry_run:
        for path in published_files(folder):
            print(f"{path.stat().st_size / 2**20:12.2f} MiB  {path.relative_to(folder)}")
        return 0
    if options.quiet:
        disable_progress_bars()
    address = push_folder(
        folder,
        options.repo,
        private=True if options.private else None,
        update=options.update,
        revision=options.revision,
        message=options.message,
        create_pr=options.pull_request,
    )
    print(address)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preftune push",
        description="Upload a model, an adapter or a run to the hub.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="a run folder, an export, a model or an adapter")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository, which is made")
    parser.add_argument("--private", action="store_true", help="show a new repository to its owners alone")
    parser.add_argument("--update", action="store_true", help="put a commit on a repository that exists")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch of it (main)")
    parser.add_argument("--message", default="Upload with preftune", help="of the commit")
    parser.add_argument("--pull-request", action="store_true", help="to a repository that exists, as a pull request")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser
