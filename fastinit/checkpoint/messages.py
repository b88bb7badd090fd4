"""Where messages about checkpoints go: by mmengine's ``print_log``, which users and tests replace."""

from __future__ import annotations

import logging

from ..provenance import logger as own_logger


def print_log(msg: str, logger: logging.Logger | str | None = None, level: int = logging.INFO) -> None:
    """Logs a message, or prints it where ``logger`` is None.

    Args:
        msg: the message.
        logger: a Logger; "current" for fastinit's own, "silent" for none, another text for the logger of that name.
        level: the logging level.
    """
    if logger is None:
        print(msg)
    elif isinstance(logger, logging.Logger):
        logger.log(level, msg)
    elif logger == "current":
        own_logger.log(level, msg)
    elif logger != "silent":
        logging.getLogger(logger).log(level, msg)


def log(message: str, logger: logging.Logger | str | None, level: int = logging.INFO) -> None:
    """Hands a message to the ``print_log`` that stands in the package now."""
    from . import print_log

    print_log(message, logger=logger, level=level)
