"""The command ``lsstcal``: arguments in, lines and JSON out; everything else is in `lsstcal_dask.pipeline`."""

import sys

from lsstcal_dask.cli import cubes, exposures, products, team
from lsstcal_dask.cli.app import app
from lsstcal_dask.errors import CalibrationError, WrongUse

__all__ = ["app", "main"]

# Modules register their commands when they are imported; help lists them in the order of their use.
_ORDER = [module.__name__ for module in (exposures, products, cubes, team)]
app.registered_commands.sort(key=lambda command: _ORDER.index(getattr(command.callback, "__module__", "")))


def main() -> None:
    """Run the command line; errors end in one line and exit status 1 (2 for wrong use)."""
    try:
        app()
    except CalibrationError as error:
        print(f"lsstcal: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, WrongUse) else 1)
    except KeyboardInterrupt:
        print("lsstcal: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except (NotADirectoryError, FileExistsError) as error:
        print(f"lsstcal: {error.filename}: a file is where a folder is wanted: name another place", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"lsstcal: {error}: check the disk and its permissions", file=sys.stderr)
        sys.exit(1)
