"""What the conversion scripts share: bad input gives one line, `error: ...`, and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from ..files import first_line, one_line


class OneLineParser(argparse.ArgumentParser):
    """argparse, but an error is one line without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def run(convert: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, arguments: list[str] | None):
    """Parse, convert, and turn errors of the input or of the disk into one line and exit code 2."""
    args = parser.parse_args(arguments)
    try:
        convert(args)
    except ValueError as error:
        message = one_line(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else first_line(error)
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
