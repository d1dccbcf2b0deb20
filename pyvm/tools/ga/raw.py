"""The subcommand ``raw``: any command, in JSON or by its name."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pyvm.agent import AgentClient, AgentError
from pyvm.tools.ga.failures import FAILED, USAGE, GaError


def run(agent: AgentClient, options: argparse.Namespace) -> int:
    """Send a request and show the answer, errors too, as the agent gave it."""
    name, arguments = _request(options.request, options.arguments)
    try:
        answer: dict[str, Any] = {"return": agent.execute(name, arguments)}
        status = 0
    except AgentError as error:
        answer = {"error": {"class": error.error_class, "desc": error.desc}}
        status = FAILED
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    return status


def _request(given: str, arguments: str | None) -> tuple[str, dict[str, Any]]:
    text = sys.stdin.read() if given == "-" else given
    if not text.lstrip().startswith("{"):
        return text.strip(), _object(arguments or "{}")
    request = _object(text)
    name, found = request.get("execute"), request.get("arguments", {})
    if not isinstance(name, str) or not isinstance(found, dict) or arguments is not None:
        raise GaError('a request is {"execute": NAME, "arguments": {...}}', USAGE)
    return name, found


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GaError(f"that is no JSON: {error}", USAGE) from None
    if not isinstance(found, dict):
        raise GaError("a JSON object is needed", USAGE)
    return found
