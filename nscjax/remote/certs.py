"""Certificates of two parties: a private authority, and one certificate for each.

    python -m nscjax.remote.certs FOLDER [--hosts NAME ...] [--client NAME] [--more NAME ...]

makes what is missing of `ca.pem`, `ca.key`, `server.pem`, `server.key`, `client.pem` and `client.key`, and touches
nothing that is there, but for a server's certificate that is not good for a host given: it is made anew, for that one
as well. More clients have a folder each, `FOLDER/NAME` with `ca.pem`, `client.pem` and `client.key`, all that is to be
brought to them. `ca.key` signs more, and stays at home.
"""

import argparse
import datetime as dt
import os
from pathlib import Path

import trustme
from cryptography import x509

from nscjax import check

HOSTS = ("localhost", "127.0.0.1", "::1")
LIFETIME = dt.timedelta(days=730)


def make(
    folder: Path, hosts: tuple[str, ...] = HOSTS, client: str = "client", more: tuple[str, ...] = ()
) -> list[Path]:
    """Makes the certificates that are missing in `folder` and returns their paths; none where all are there.

    Args:
        folder: where to; made if it is missing.
        hosts: names and addresses of the server.
        client: the client's name, by which the server knows it.
        more: names of more clients.

    Raises:
        InputError: a client's name is none of a folder.
    """
    for name in more:
        if name != Path(name).name or name in ("", ".", ".."):
            raise check.error("name of a client", name, "one that a folder can have")
    folder.mkdir(parents=True, exist_ok=True)
    expires = dt.datetime.now(dt.UTC) + LIFETIME
    made: list[Path] = []
    authority_paths = folder / "ca.pem", folder / "ca.key"
    if all(path.exists() for path in authority_paths):
        authority = trustme.CA.from_pem(authority_paths[0].read_bytes(), authority_paths[1].read_bytes())
    else:
        authority = trustme.CA(organization_name="nscjax")
        made += _write(authority_paths, authority.cert_pem.bytes(), authority.private_key_pem.bytes())
    is_new = bool(made)
    wanted = [(folder, "server", hosts, "server"), (folder, "client", (client,), client)]
    for own, party, names, common_name in [*wanted, *((folder / name, "client", (name,), name) for name in more)]:
        paths = own / f"{party}.pem", own / f"{party}.key"
        # With a new authority the old certificates are worth nothing.
        if not is_new and all(path.exists() for path in paths):
            known = _names(paths[0])
            if party == "client" or known.issuperset(names):
                continue
            names = (*known, *(name for name in names if name not in known))
        if own != folder:
            own.mkdir(exist_ok=True)
            (own / "ca.pem").write_bytes(authority.cert_pem.bytes())
        certificate = authority.issue_cert(*names, common_name=common_name, not_after=expires)
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        made += _write(paths, chain, certificate.private_key_pem.bytes())
    return made


def _names(path: Path) -> set[str]:
    """Returns the names and addresses that a certificate is good for."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def _write(paths: tuple[Path, Path], certificate: bytes, key: bytes) -> list[Path]:
    """Writes a certificate, and its key so that no one else can read it."""
    paths[0].write_bytes(certificate)
    paths[1].unlink(missing_ok=True)
    with os.fdopen(os.open(paths[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key)
    return list(paths)


def main() -> None:
    """Makes what is missing and says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hosts", nargs="+", default=HOSTS, help="names and addresses of the server")
    parser.add_argument("--client", default="client", help="the client's name")
    parser.add_argument("--more", nargs="*", default=(), metavar="NAME", help="names of more clients")
    options = parser.parse_args()
    made = make(options.folder, tuple(options.hosts), options.client, tuple(options.more))
    print("\n".join(f"made {path}" for path in made) or f"{options.folder}: all certificates are there")


if __name__ == "__main__":
    main()
