"""Entry point of the console script `nanogpt` and of `python -m nanogpt_dist`."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def main() -> None:
    # Installed from a wheel, the folders cli, prepare and launch lie in nanogpt_dist/_app; in a clone, beside
    # nanogpt_dist. Whichever it is comes first on sys.path, ahead of any other distribution's `cli`.
    sys.path.insert(0, str(_PACKAGE / "_app" if (_PACKAGE / "_app").is_dir() else _PACKAGE.parent))
    try:
        from cli.main import main as run

        sys.exit(run())
    except KeyboardInterrupt:  # while it was still loading
        sys.exit(130)


if __name__ == "__main__":
    main()
