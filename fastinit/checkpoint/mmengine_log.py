"""mmengine's ``print_log``, which users and tests replace in the package ``fastinit.checkpoint``."""

from __future__ import annotations

import logging
import sys

from ..logs import logger as own_logger
from .messages import printable


def print_log(msg: str, logger: logging.Logger | str | None = None, level: int = logging.INFO) -> None:
    """Logs a message, or prints it where ``logger`` is None.

    Args:
        msg: the message; what could control a terminal in it is escaped.
        logger: a Logger; "current" for fastinit's own, "silent" for none, another text for the logger of that name.
        level: the logging level.
    """
    msg = printable(str(msg))
    if logger is None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(msg.encode(encoding, "backslashreplace").decode(encoding))  # an ASCII terminal takes what it can
    elif isinstance(logger, logging.Logger):
        logger.log(level, msg)
    elif logger == "current":
        own_logger.log(level, msg)
    elif logger != "silent":
        logging.getLogger(logger).log(level, msg)


def log(message: str, logger: logging.Logger | str | None, level: int = logging.INFO) -> None:
    """Logs a message through the package's current ``print_log``: mmengine's users replace that attribute."""
    sys.modules[__package__].print_log(message, logger=logger, level=level)
