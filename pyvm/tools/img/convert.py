"""``pyvm-img convert``: copy images into a new one, in another format, compressed, or without holes."""

from __future__ import annotations

from pyvm.annotations import TYPE_CHECKING, Any
from pyvm.records import field, record
from pyvm.tools.img.arguments import IMAGE_LONG, Arguments, Cache, scan
from pyvm.tools.img.console import Progress, complain
from pyvm.tools.img.creation import asks_for_help, create_target, driver_features, print_option_help, split_options
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice, as_qcow2

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.tools.img.runs import Disks

_LONG = {
    **IMAGE_LONG,
    "force-share": "U",
    "target-image-opts": "target-image-opts",
    "salvage": "salvage",
    "target-is-zero": "target-is-zero",
    "bitmaps": "bitmaps",
    "skip-broken-bitmaps": "skip-broken-bitmaps",
    "source-format": "f",
    "target-format": "O",
}
_SECTOR = 512
_MOST_SPARSE = 16 << 20
_IN_FLIGHT = 8
_MOST_IN_FLIGHT = 16


@record
class _Job:
    """What is to be done, as far as the command line says."""

    arguments: Arguments
    sources: list[str]
    target: str
    format: str
    options: dict[str, str] = field(default_factory=dict)
    sparse: int = 4096
    in_flight: int = _IN_FLIGHT
    rate: int = 0

    @property
    def create(self) -> bool:
        """Whether the target is to be made."""
        return "n" not in self.arguments

    @property
    def compressed(self) -> bool:
        return "c" in self.arguments

    @property
    def quiet(self) -> bool:
        return "q" in self.arguments


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:", _LONG)
    if asks_for_help(arguments.all("o")):
        filename = arguments.operands[-1] if arguments.operands else None
        return print_option_help(filename, arguments.get("O") or "raw")
    job = _read_arguments(arguments)
    arguments.add_objects()
    target_cache = arguments.cache("t", "unsafe", "Invalid cache option: {}")
    source_cache = arguments.cache("T", "writeback", "Invalid source cache option: {}")
    source = _Source(job, ImageChoice.of(arguments), source_cache)
    progress = Progress("p" in arguments and not job.quiet)
    disks = source.open()
    try:
        _convert(job, source, disks, target_cache, progress)
    finally:
        disks.close()
        progress.close()
    return 0


def _read_arguments(arguments: Arguments) -> _Job:
    options = arguments.creation_options()
    sparse = _sparse_size(arguments.get("S"))
    in_flight = _in_flight(arguments.get("m"))
    rate = _rate(arguments.get("r"))
    if "n" in arguments and options is not None:
        raise ImgError("-o has no effect when skipping image creation")
    if "target-is-zero" in arguments and "n" not in arguments:
        raise ImgError("--target-is-zero requires use of -n flag")
    if "target-image-opts" in arguments and "n" not in arguments:
        raise ImgError("--target-image-opts requires use of -n flag")
    if "skip-broken-bitmaps" in arguments and "bitmaps" not in arguments:
        raise ImgError("Use of --skip-broken-bitmaps requires --bitmaps")
    for option in ("c", "S"):
        if "C" in arguments and option in arguments:
            raise ImgError(f"Cannot enable copy offloading when -{option} is used")
    if len(arguments.operands) < 2:
        raise ImgError("Must specify image file name")
    *sources, target = arguments.operands
    if len(sources) > 1 and "B" in arguments:
        raise ImgError("Having a backing file for the target makes no sense when concatenating multiple input images")
    if len(sources) > 1 and "l" in arguments:
        raise ImgError("No support for concatenating multiple snapshot")
    return _Job(
        arguments,
        sources,
        target,
        arguments.get("O") or "raw",
        split_options(options),
        sparse,
        in_flight,
        rate,
    )


def _in_flight(text: str | None) -> int:
    if text is None:
        return _IN_FLIGHT
    from pyvm.tools.img.sizes import parse_integer

    complaint = f"Invalid number of coroutines. Allowed number of coroutines is between 1 and {_MOST_IN_FLIGHT}"
    return parse_integer(text, complaint, 1, _MOST_IN_FLIGHT)


def _rate(text: str | None) -> int:
    if text is None:
        return 0
    from pyvm.tools.img.sizes import parse_size

    return parse_size("rate limit", text)


def _sparse_size(text: str | None) -> int:
    if text is None:
        return 4096
    from pyvm.tools.img.sizes import parse_size

    size = parse_size("buffer size for sparse output", text)
    if size % _SECTOR or size > _MOST_SPARSE:
        raise ImgError(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of"
            f" {_SECTOR} up to {_MOST_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
        )
    return size


class _Source:
    """The images to read, which several threads open each for itself."""

    def __init__(self, job: _Job, choice: ImageChoice, cache: Cache) -> None:
        self._job = job
        self._choice = choice
        self._cache = cache

    def open(self) -> Disks:
        """Open all images.  Raises ImgError."""
        from pyvm.tools.img.runs import Disks

        nodes: list[Node] = []
        snapshot = self._job.arguments.get("l")
        try:
            for name in self._job.sources:
                nodes.append(self._choice.open(name, cache=self._cache, quiet=self._job.quiet, exclusive=True))
            if snapshot is not None:
                return Disks([open_snapshot(nodes[0], snapshot)], nodes)
        except BaseException:
            for node in nodes:
                node.release()
            raise
        return Disks(nodes)


def open_snapshot(node: Node, parameter: str) -> Node:
    """Return a node that shows an internal snapshot, as ``-l`` names it: its ID or name, or parameters.

    Raises ImgError.
    """
    from pyvm.block.errors import BlockError

    image = as_qcow2(node)
    wanted = snapshot_parameters(parameter)
    for snapshot in image.snapshots if image is not None else ():
        if not wanted:
            found = parameter in (snapshot.identifier, snapshot.name)
        else:
            found = wanted.get("snapshot.id", snapshot.identifier) == snapshot.identifier
            found = found and wanted.get("snapshot.name", snapshot.name) == snapshot.name
        if found and image is not None:
            try:
                return image.open_snapshot(snapshot.identifier)
            except BlockError as error:
                raise ImgError(f"Failed to load snapshot: {error}") from None
    raise ImgError("Failed to load snapshot: Can't find snapshot")


def snapshot_parameters(parameter: str) -> dict[str, str]:
    """Return what ``-l`` says as parameters; nothing where it is an ID or name.  Raises ImgError."""
    if not parameter.startswith("snapshot."):
        return {}
    wanted = split_options(parameter)
    strange = [name for name in wanted if name not in ("snapshot.id", "snapshot.name")]
    if strange:
        complain(f"Invalid parameter '{strange[0]}'")
    if strange or not wanted:
        raise ImgError(f"Failed in parsing snapshot param '{parameter}'")
    return wanted


def _convert(job: _Job, source: _Source, disks: Disks, cache: Cache, progress: Progress) -> None:
    if job.create:
        _check_target(job)
    _check_bitmaps(job, disks)
    if job.create:
        _create(job, disks)
    target = _open_target(job, cache)
    try:
        if target.size < disks.size:
            raise ImgError("output file is smaller than input file")
        _check_compression(job, target)
        _copy(job, source, disks, target, progress, write_through=not cache.writeback)
        if "bitmaps" in job.arguments:
            from pyvm.tools.img.bitmap import copy_bitmaps

            copy_bitmaps(disks.nodes[0], target)
        try:
            target.flush()
        except OSError as error:
            raise ImgError(f"error while writing at byte {disks.size}: {error.strerror}") from None
    finally:
        target.release()


def _check_target(job: _Job) -> None:
    """Refuse what the target's format cannot do, before anything is made.  Raises ImgError."""
    features = driver_features(job.format)
    arguments = job.arguments
    if "B" in arguments and not features.backing:
        raise ImgError(f"Backing file not supported for file format '{job.format}'")
    if "F" in arguments and not features.backing:
        raise ImgError(f"Backing file format not supported for file format '{job.format}'")
    if "B" in arguments:
        job.options["backing_file"] = str(arguments.get("B"))
    if "F" in arguments:
        job.options["backing_fmt"] = str(arguments.get("F"))
    if "backing_file" in job.options and "backing_fmt" not in job.options:
        raise ImgError("Use of backing file requires explicit backing format")
    if job.compressed:
        if not features.compression:
            raise ImgError("Compression not supported for this file format")
        if job.options.get("preallocation", "off") != "off":
            raise ImgError("Compression and preallocation not supported at the same time")
        if "data_file" in job.options:
            raise ImgError("Compression and external data file not supported at the same time")
        if job.options.get("encryption", "off") != "off" or "encrypt.format" in job.options:
            raise ImgError("Compression and encryption not supported at the same time")
    if "bitmaps" in arguments and not features.bitmaps:
        raise ImgError(f"Format driver '{job.format}' does not support bitmaps")


def _create(job: _Job, disks: Disks) -> None:
    from pyvm.block.errors import BlockError

    options: dict[str, Any] = {name: value for name, value in job.options.items() if name != "size"}
    try:
        create_target(job.target, job.format, disks.size, options, job.arguments.secrets)
    except BlockError as error:
        if str(error).startswith("Invalid parameter"):
            raise ImgError(str(error)) from None
        raise ImgError(f"{job.target}: error while converting {job.format}: {error}") from None


def _open_target(job: _Job, cache: Cache) -> Node:
    as_options = "target-image-opts" in job.arguments
    choice = ImageChoice(None if as_options else job.format, as_options, secrets=job.arguments.secrets)
    # Without holes nothing is to be given back.
    options: dict[str, Any] = {} if job.sparse else {"discard": "ignore"}
    # What was made with a key is opened with it.
    if "key-secret" in job.options:
        options["key-secret"] = job.options["key-secret"]
    if "encrypt.key-secret" in job.options:
        options["encrypt"] = {"key-secret": job.options["encrypt.key-secret"]}
    return choice.open(job.target, writable=True, cache=cache, quiet=job.quiet, options=options)


def _check_compression(job: _Job, target: Node) -> None:
    image = as_qcow2(target)
    if not job.compressed:
        return
    if image is None or image.header.external_data or image.encrypted:
        raise ImgError("Compression not supported for this file format")


def _check_bitmaps(job: _Job, disks: Disks) -> None:
    """Refuse bitmaps that cannot be copied, before anything is made.  Raises ImgError."""
    if "bitmaps" not in job.arguments:
        return
    if len(disks.nodes) > 1:
        raise ImgError("Copying bitmaps only possible with single source")
    from pyvm.tools.img.bitmap import check_copyable

    check_copyable(disks.nodes[0], skip_broken="skip-broken-bitmaps" in job.arguments)


def _copy(job: _Job, source: _Source, disks: Disks, target: Node, progress: Progress, *, write_through: bool) -> None:
    from pyvm.tools.img.copying import Copier, Settings
    from pyvm.tools.img.runs import Layout

    has_backing = "B" in job.arguments or "backing_file" in job.options
    below = target.backing
    backing_size = (below.size if below is not None else 0) if has_backing else None
    image = as_qcow2(target)
    settings = Settings(
        layout=Layout(backing_size, "salvage" in job.arguments, job.quiet),
        sparse=job.sparse,
        unit=_zero_unit(job, target),
        target_is_zero=_make_zero(job, target, has_backing),
        in_flight=job.in_flight,
        rate=job.rate,
        write_through=write_through,
        compress=image if job.compressed else None,
    )
    if "C" in job.arguments:
        from pyvm.tools.img.offload import HostCopier

        HostCopier(disks, target, settings, progress).run()
    else:
        Copier(disks, source.open, target, settings, progress).run()
    progress.update(100.0)


def _zero_unit(job: _Job, target: Node) -> int:
    """Return the unit in which zeros are looked for: less than the target allocates gains nothing."""
    unit = 1 << job.sparse.bit_length() - 1 if job.sparse else 4096
    image = as_qcow2(target)
    if image is None or image.header.external_data:
        return unit
    cluster = image.cluster_size
    return max(unit, cluster // 32 if image.header.extended_l2 else cluster)


def _make_zero(job: _Job, target: Node, has_backing: bool) -> bool:
    """Return whether the target reads as zeros where nothing is written, made so where that is cheap."""
    if "target-is-zero" in job.arguments:
        return True
    if has_backing or not job.sparse:
        return False
    if job.create and target.backing is None and target.has_zero_init:
        return True
    if target.encrypted and as_qcow2(target) is None:
        # There, zeros take as long as data.
        return False
    if target.backing is not None or target.file is None or target.file.driver != "file":
        return False
    try:
        target.write_zeroes(0, target.size, True)
    except OSError:
        # Zeros are written where they are needed.
        return False
    return True
