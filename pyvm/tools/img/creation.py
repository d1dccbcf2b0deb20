"""Making images, and what can be chosen then: shared by create, convert, dd, measure and amend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyvm.annotations import TYPE_CHECKING, Any, NamedTuple
from pyvm.tools.img.errors import ImgError

if TYPE_CHECKING:
    from pyvm.block.create import Option
    from pyvm.secrets import Secrets


class Features(NamedTuple):
    """What a format can do."""

    backing: bool = False
    compression: bool = False
    bitmaps: bool = False


_FEATURES = {"raw": Features(), "luks": Features(), "qcow2": Features(backing=True, compression=True, bitmaps=True)}
_KINDS = {"str": "<str>", "size": "<size>", "number": "<num>", "bool": "<bool (on/off)>"}
_OF_THE_FILE = ("nocow", "extent_size_hint")


def driver_features(name: str) -> Features:
    """Return what a format can do, one in which images can be made.  Raises ImgError."""
    features = _FEATURES.get(name)
    if features is None:
        from pyvm.block.options import DRIVERS

        if name in DRIVERS:
            raise ImgError(f"Format driver '{name}' does not support image creation")
        raise ImgError(f"Unknown file format '{name}'")
    return features


def split_options(text: str | None) -> dict[str, str]:
    """Return the parameters of ``-o``; of one given twice the last counts."""
    if text is None:
        return {}
    from pyvm.options import split_pairs

    return dict(split_pairs(text, short=lambda key: (key, "on")))


def asks_for_help(texts: Iterable[str]) -> bool:
    """Whether the parameters of an ``-o`` ask which there are."""
    return any(part in ("help", "?") for text in texts for part in text.split(","))


def check_amendable(name: str, options: Iterable[str]) -> None:
    """Refuse options that cannot be changed later in images of a format.  Raises ImgError."""
    from pyvm.block.create import AMEND_OPTIONS, OPTIONS

    known = {option.name for option in OPTIONS[name]}
    amendable = {option.name for option in AMEND_OPTIONS[name]}
    for option in options:
        if option not in amendable:
            hint = "\nThis option is only supported for image creation" if option in known else ""
            raise ImgError(f"Invalid parameter '{option}'{hint}")


def print_option_help(filename: str | None, name: str) -> int:
    """Print the options of a format, with those of the file where there is a name; return the exit status."""
    from pyvm.block.create import OPTIONS

    driver_features(name)
    if filename is not None:
        print("Supported options:")
        _print_options(OPTIONS[name])
        return 0
    of_the_file = {"preallocation", *_OF_THE_FILE} if name in ("raw", "luks") else _OF_THE_FILE
    print(f"Supported {name} options:")
    _print_options(option for option in OPTIONS[name] if option.name not in of_the_file)
    print("\nThe protocol level may support further options.\nSpecify the target filename to include those options.")
    return 0


def print_amend_help(name: str) -> None:
    """Print the options of a format that can be changed later."""
    from pyvm.block.create import AMEND_OPTIONS

    print(f"Amend options for '{name}':")
    _print_options(AMEND_OPTIONS[name])


def _print_options(options: Iterable[Option]) -> None:
    for option in sorted(options, key=lambda option: option.name):
        print(f"  {option.name + '=' + _KINDS[option.type]:<22} - {option.help}")


def create_target(filename: str, name: str, size: int, options: Mapping[str, Any], secrets: Secrets) -> None:
    """Make the image that is to be written.  Raises BlockError."""
    from pyvm.block.create import create_image

    driver_features(name)
    create_image(filename, name, size, options, check_backing=False, secrets=secrets)
