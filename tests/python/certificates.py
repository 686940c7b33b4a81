"""Certificates that a server must not take: of other CAs, past their time, for another use."""

from __future__ import annotations

import datetime
import pathlib
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness import Server, Terminal

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def _write(server: Server, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Terminal:
    folder = server.folder / "made"
    folder.mkdir(exist_ok=True)
    stem = folder / secrets.token_hex(8)
    cert_path, key_path = stem.with_suffix(".pem"), stem.with_suffix(".key")
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return Terminal(cert_path, key_path, pathlib.Path(), "")


def city_ca(server: Server) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The city's own CA, as its owner could misuse it."""
    certificate = x509.load_pem_x509_certificate((server.data / "keys" / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((server.data / "keys" / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, key


def foreign_ca(like: x509.Certificate | None = None) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A CA that nobody trusts; with the name (and all extensions) of `like`, where given."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = like.subject if like else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Another CA")])
    builder = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
               .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 365 * DAY)
               .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True))
    return builder.sign(key, hashes.SHA256()), key


def leaf(server: Server, template: Terminal, *, ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
         begins: datetime.datetime | None = None, ends: datetime.datetime | None = None,
         usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH, serial: int | None = None) -> Terminal:
    """A certificate that looks like a real terminal's in everything but what is named."""
    issuer, issuer_key = ca or city_ca(server)
    real = x509.load_pem_x509_certificate(template.cert.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (x509.CertificateBuilder().subject_name(real.subject).issuer_name(issuer.subject)
               .public_key(key.public_key()).serial_number(serial or x509.random_serial_number())
               .not_valid_before(begins or NOW - DAY).not_valid_after(ends or NOW + 30 * DAY))
    for extension in real.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage([usage])
        elif isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            value = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(value, extension.critical)
    return _write(server, builder.sign(issuer_key, hashes.SHA256()), key)


def serial_of(terminal: Terminal) -> int:
    """The serial number of a terminal's certificate."""
    return x509.load_pem_x509_certificate(terminal.cert.read_bytes()).serial_number


def expired(server: Server, template: Terminal) -> Terminal:
    """By the city's CA, for a time that is over."""
    return leaf(server, template, begins=NOW - 20 * DAY, ends=NOW - DAY)


def foreign(server: Server, template: Terminal) -> Terminal:
    """By a CA that nobody trusts."""
    return leaf(server, template, ca=foreign_ca())
