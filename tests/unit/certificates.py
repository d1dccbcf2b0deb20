"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_BEGIN = datetime.datetime(2020, 1, 1)
_END = datetime.datetime(2120, 1, 1)


class Authority:
    """Signs certificates; they are put where credentials of pyvm and QEMU expect them."""

    def __init__(self, name: str = "tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._build(self._name, self._key.public_key(), authority=True)

    def _build(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool, hosts: tuple[str, ...] = ()
    ) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=not authority, data_encipherment=False,
            key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
        )
        if hosts:
            names: list[x509.GeneralName] = []
            for host in hosts:
                is_address = host.replace(".", "").isdigit()
                names.append(x509.IPAddress(ipaddress.ip_address(host)) if is_address else x509.DNSName(host))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, folder: Path, side: str, common_name: str, hosts: tuple[str, ...] = ()) -> str:
        """Write what one side needs to a folder; return the name of that."""
        folder.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests, Inc"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )
        certificate = self._build(name, key.public_key(), authority=False, hosts=hosts)
        pem = serialization.Encoding.PEM
        (folder / "ca-cert.pem").write_bytes(self._certificate.public_bytes(pem))
        (folder / f"{side}-cert.pem").write_bytes(certificate.public_bytes(pem))
        (folder / f"{side}-key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return str(folder)
