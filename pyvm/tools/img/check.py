"""``pyvm-img check``: look for damage in an image, and repair it.

Exit statuses: 0 good, 1 the check failed, 2 there are corruptions, 3 there are leaks only, 63 the format cannot be
checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import complain, print_json, warn_plainly
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.opening import ImageChoice

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.drivers.qcow2.references import CheckResult

_LONG = {**IMAGE_LONG, "format": "f", "repair": "r", "output": "output=", "force-share": "U"}
_REPAIRS = {"leaks": frozenset({"leaks"}), "all": frozenset({"leaks", "errors"})}
_CORRUPT, _LEAKS, _NOT_SUPPORTED = 2, 3, 63


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:r:T:qU", _LONG)
    wanted = arguments.get("r")
    if wanted is not None and wanted not in _REPAIRS:
        raise UsageError(f"Unknown option value for -r (expecting 'leaks' or 'all'): {wanted}")
    repair = _REPAIRS[wanted] if wanted is not None else frozenset()
    as_json = arguments.json()
    filename = arguments.operand()
    arguments.add_objects()
    cache = arguments.cache("T", "writeback", "Invalid source cache option: {}")
    quiet = "q" in arguments
    node = ImageChoice.of(arguments).open_for_check(filename, writable=bool(repair), cache=cache)
    if node is None:
        complain("This image format does not support checks")
        return _NOT_SUPPORTED
    try:
        result = _check(node, repair, as_json, quiet)
    finally:
        node.release()
    if as_json:
        print_json(_describe(filename, result))
    elif not quiet:
        _print(result)
    if result.corruptions:
        return _CORRUPT
    if result.leaks:
        return _LEAKS
    return 1 if result.check_errors else 0


def _check(node: Qcow2Node, repair: frozenset[str], as_json: bool, quiet: bool) -> CheckResult:
    from pyvm.block.errors import BlockError

    try:
        result = node.check(repair, warn_plainly)
        if not result.corruptions_fixed and not result.leaks_fixed:
            return result
        fixed = result.leaks_fixed, result.corruptions_fixed
        if not quiet and not as_json:
            print(
                f"The following inconsistencies were found and repaired:\n\n    {fixed[0]} leaked clusters\n"
                f"    {fixed[1]} corruptions\n\nDouble checking the fixed image now..."
            )
        result = node.check(frozenset(), warn_plainly)
    except (BlockError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ImgError(f"Check failed: {text}") from None
    result.leaks_fixed, result.corruptions_fixed = fixed
    return result


def _describe(filename: str, result: CheckResult) -> dict[str, Any]:
    """Return the ImageCheck record, members that are zero left out as far as QEMU does that."""
    info: dict[str, Any] = {"filename": filename, "format": "qcow2", "check-errors": result.check_errors}
    optional = {
        "image-end-offset": result.image_end_offset,
        "corruptions": result.corruptions,
        "leaks": result.leaks,
        "corruptions-fixed": result.corruptions_fixed,
        "leaks-fixed": result.leaks_fixed,
        "total-clusters": result.total_clusters,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
    }
    info.update({name: value for name, value in optional.items() if value})
    return info


def _print(result: CheckResult) -> None:
    if not (result.corruptions or result.leaks or result.check_errors):
        print("No errors were found on the image.")
    else:
        if result.corruptions:
            print(
                f"\n{result.corruptions} errors were found on the image.\n"
                "Data may be corrupted, or further writes to the image may corrupt it."
            )
        if result.leaks:
            print(
                f"\n{result.leaks} leaked clusters were found on the image.\n"
                "This means waste of disk space, but no harm to data."
            )
        if result.check_errors:
            print(f"\n{result.check_errors} internal errors have occurred during the check.")
    if result.total_clusters and result.allocated_clusters:
        allocated = result.allocated_clusters
        print(
            f"{allocated}/{result.total_clusters} = {100 * allocated / result.total_clusters:.2f}% allocated,"
            f" {100 * result.fragmented_clusters / allocated:.2f}% fragmented,"
            f" {100 * result.compressed_clusters / allocated:.2f}% compressed clusters"
        )
    if result.image_end_offset > 0:
        print(f"Image end offset: {result.image_end_offset}")
