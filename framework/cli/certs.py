"""`framework certs`: a certificate authority for development, and certificates of it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import ConfigError

if TYPE_CHECKING:
    from framework.cli import Commands

EPILOG = """\
examples:
  framework certs init
  framework certs issue catalog
  framework certs issue catalog --san catalog.internal --spiffe spiffe://shop/catalog --days 30
  framework certs issue catalog --force            again: servers and clients that run take it over

For development. The files go to ./certs, keys readable to this user only; keep them out of version control."""

FOLDER = Path("certs")


def add_parser(subparsers: Commands) -> None:
    """`certs` and its options."""
    parser = subparsers.add_parser(
        "certs",
        help="make a development CA, and certificates of it",
        description="Make a certificate authority for development, and certificates for TLS and mTLS with it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="make the authority", description="Make the authority: ca.pem and ca.key.")
    issue = actions.add_parser(
        "issue",
        help="make a certificate",
        description="Make a certificate for a server and a client: NAME.pem, NAME.key.",
    )
    issue.add_argument("name", metavar="NAME", help="of the service; its clients look for this name in it")
    issue.add_argument(
        "--san", action="append", default=[], metavar="HOST", help="another host name or address; may be repeated"
    )
    issue.add_argument("--spiffe", default="", metavar="ID", help="SPIFFE id, spiffe://shop/catalog")
    for one, days in ((init, 3650), (issue, 90)):
        one.add_argument("--days", type=_days, default=days, metavar="N", help=f"that it is good for (default {days})")
        one.add_argument(
            "--dir", type=Path, default=FOLDER, metavar="FOLDER", help="where the files are (default certs)"
        )
        one.add_argument("--force", action="store_true", help="replace what is there")
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.set_defaults(run=run)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 < days < 36500:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days")
    return days


def run(args: argparse.Namespace) -> int:
    """Make the files, and say what to do with them. Raises ConfigError for what cannot be made."""
    from datetime import UTC, datetime

    try:
        from framework.security import certs
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; certificates take: pip install framework-grpc[security]"
        ) from None
    now = datetime.now(UTC)
    if args.action == "init":
        pair = certs.make_authority(args.dir, now, days=args.days, force=args.force)
        print(f"made {pair.certificate} and {pair.key}. Next: framework certs issue NAME")
        return 0
    pair = certs.issue(args.dir, args.name, now, names=args.san, spiffe=args.spiffe, days=args.days, force=args.force)
    ca = certs.Pair.of(args.dir, "ca").certificate
    print(f"made {pair.certificate} and {pair.key}. In framework.toml, for mTLS both ways:\n")
    for table, why in (("server.tls", "clients have to show a certificate; without ca they need not"),
                       ("client.tls", "whom to trust, and what to show")):  # fmt: skip
        print(f'[{table}]  # {why}\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\nca = "{ca}"\n')
    return 0
