"""Commands about what only some processors have: none of pyvm's encrypts memory or has enclaves."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("query-sev")
def query_sev(context: Context) -> dict[str, Any]:
    """Return that memory is not encrypted."""
    numbers = dict.fromkeys(("api-major", "api-minor", "build-id", "policy", "handle"), 0)
    return {"enabled": False, **numbers, "state": "uninit"}


@COMMANDS.command("query-sev-launch-measure")
def query_sev_launch_measure(context: Context) -> dict[str, Any]:
    """There is nothing to be measured."""
    raise QmpError("SEV launch measurement is not available")


@COMMANDS.command("query-sev-capabilities")
def query_sev_capabilities(context: Context) -> dict[str, Any]:
    """Encryption would need KVM."""
    raise QmpError("KVM not enabled")


@COMMANDS.command("sev-inject-launch-secret")
def sev_inject_launch_secret(context: Context, packet_header: str, secret: str, gpa: int | None) -> None:
    """There is nobody to be given a secret."""
    raise QmpError("SEV not enabled for guest")


@COMMANDS.command("query-sev-attestation-report")
def query_sev_attestation_report(context: Context, mnonce: str) -> dict[str, Any]:
    """There is nothing to be attested."""
    raise QmpError("SEV is not enabled")


@COMMANDS.command("query-sgx")
def query_sgx(context: Context) -> dict[str, Any]:
    """There are no enclaves."""
    raise QmpError("No EPC regions defined, SGX not available")


@COMMANDS.command("query-sgx-capabilities")
def query_sgx_capabilities(context: Context) -> dict[str, Any]:
    """Enclaves would need KVM."""
    raise QmpError("SGX is not enabled in KVM")
