"""pyvm-img and qemu-img side by side: the same commands in two directories of the same images.

Output, errors and exit statuses have to be the same, the program's name apart.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvm.tools.img.cli import main

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]

PYVM_IMG = (sys.executable, "-m", "pyvm.tools.img.cli")
ROOT = Path(__file__).resolve().parents[2]

PREPARE = """
qemu-img create -q -f qcow2 base 4M
qemu-io -c 'write -P 3 0 1M' -c 'write -P 5 3M 64k' base
qemu-img create -q -f qcow2 -b base -F qcow2 top
qemu-io -c 'write -P 9 1M 64k' -c 'write -z 128k 64k' top
qemu-img create -q raw.img 3M
qemu-io -f raw -c 'write 64k 64k' raw.img
qemu-img convert -c -O qcow2 base packed
qemu-img create -q -f qcow2 -o compat=0.10 old 1M
qemu-img create -q z5.img 5M
qemu-img create -q z6.img 6M
qemu-img create -q -f qcow2 leaky 1M
mkdir sub
qemu-img create -q -f qcow2 -b ../base -F qcow2 sub/relative
"""

CREATE = """
create
create --bogus
create -f
create -qx a 1M
create a.raw
create a.raw 1M
create -f qcow2 a 1.5G
create -f qcow2 a 10K
create -f foo a 1
create a.raw -5
create a.raw 1x
create a.raw 9E
create a.raw 1M 2M
create -f qcow2 -o bogus=1 a 1M
create -f qcow2 -o cluster_size=3k a 1M
create -f qcow2 -o cluster_size=1k,preallocation=metadata,lazy_refcounts=on,compat=v3 a 1M
create -f qcow2 -b base -F qcow2 b
create -f qcow2 -b nothing -F qcow2 b
create -f qcow2 -u -b nothing -F qcow2 b
create -f qcow2 -u -b nothing -F qcow2 b 1M
create -f qcow2 no/x 1M
create -f qcow2 -o size=1M s
create -f qcow2 -o size=1M s 2M
create -f qcow2 -o data_file=d.raw,data_file_raw=on d 1M
create -f qcow2 -o '' d 1M
create -f qcow2 -o compression_type=zstd z 1M
create -f qcow2 -o refcount_bits=3 z 1M
create -f raw -b base z 1M
"""

LOOK = """
info
info nothing
info top
info --output=json top
info --backing-chain top
info --backing-chain --output=json top
info --output=xml top
info raw.img
info -f qcow2 raw.img
info --outp=json raw.img
info a b
info --image-opts driver=qcow2,file.filename=top
info --image-opts -f raw raw.img
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top"}}'
info -f foo raw.img
info old
info --output=json old
info sub/relative
info --output=json sub/relative
info --backing-chain sub/relative
map top
map --output=json top
map base
map --output=json base
map raw.img
map --output=json raw.img
map packed
map --output=json packed
map -s 64k -l 1M --output=json base
map -s 64x base
map -s 8M base
map -s 8M --output=json base
check base
check top
check raw.img
check --output=json top
check --output=json packed
check -q packed
check -r foo packed
check -T foo base
check nothing
compare base
compare base top
compare base packed
compare -s base packed
compare raw.img base
compare -s raw.img base
compare -q base top
compare nothing base
compare base nothing
compare z5.img z6.img
compare -p z5.img z6.img
compare -s z5.img z6.img
compare -T foo z5.img z5.img
measure
measure --size 1G
measure --size 1G -O qcow2
measure -O qcow2 base
measure -O qcow2 --output=json base
measure --output=json -O raw base
measure -O foo --size 1G
measure --size 1x
measure --size 1G base
measure -O qcow2 -o preallocation=full --size 1G
measure -O qcow2 -o cluster_size=2M top
measure -O qcow2 -o bogus=1 --size 1G
measure -O qcow2 -o extended_l2=on --size 10G
measure base a
measure -f raw --size 1G
"""

CHANGE = """
convert
convert a
convert -p -O qcow2 base c
info c
compare -s base c
convert -n base missing
convert -n -O qcow2 base c
convert -m 17 base d
convert -S 100 base d
convert -c base d
convert -C -c base d
convert -C -S 4k base d
convert -r foo base d
convert -o foo=1 base d
convert --target-is-zero base d
convert --skip-broken-bitmaps base d
convert -l foo base d
convert base raw.img d
compare d raw.img
convert -B base -O qcow2 top d
convert -B base -F qcow2 -O qcow2 top d
map d
convert -B base -F qcow2 -O qcow2 top raw.img d
convert --target-image-opts base driver=raw,file.filename=d
convert -O qcow2 base no/x
convert -c -O qcow2 top d
map --output=json d
check d
convert -c -O qcow2 -o preallocation=metadata top d
convert -O qcow2 -o cluster_size=2M top d
map d
snapshot
snapshot -l base
snapshot -c a -d b base
snapshot -a nothing base
snapshot -d nothing base
snapshot -c one base
snapshot -d one base
check base
resize
resize z5.img
resize -f raw z5.img 6M
resize -f raw z5.img 3M
resize -f raw --shrink z5.img 3M
resize -f raw z5.img -10M
resize -f raw z5.img foo
resize --preallocation=full -f raw z5.img +1M
resize --preallocation=bad -f raw z5.img +1M
resize -f raw z5.img 6000001
info z5.img
resize packed 5M
resize packed 5243000
resize packed 9E
check packed
amend
amend base
amend -o help
amend -o compat=0.10 old
amend -o compat=1.1,lazy_refcounts=on old
info old
amend -o bogus=1 old
amend -o cluster_size=4k old
amend -f raw -o help
amend -o backing_file=foo old
amend -o compat=0.11 old
rebase
rebase top
rebase -b z6.img -F raw top
compare top z6.img
rebase -u -b nothing -F qcow2 top
rebase -b base -F qcow2 top
rebase -u -b base -F foo top
rebase -u -b base top
rebase -u -b base -F qcow2 top
commit base
commit -b nothing top
commit -r x top
commit -d top
compare base top
commit top
compare base top
commit -q top
dd
dd if=base
dd if=base of=o.raw
info o.raw
dd if=base of=o.raw bs=1M count=2
info o.raw
dd if=base of=o.raw bs=1M skip=9
dd if=base of=o.raw bs=1x
dd if=base of=o.raw bs=0
dd if=base of=o.raw bogus=1
dd -O qcow2 if=base of=o bs=1M
info o
dd -O foo if=base of=o
bench
bench -c x base
bench -d x base
bench -i bad base
bench -t foo base
bench --flush-interval=3 base
bench -w --flush-interval=3 base
bench --pattern=300 base
bench -o 10G -c 2 base
bitmap
bitmap --add base
bitmap base b0
bitmap -g 1 --remove base b0
bitmap -b x --add base b0
"""


def prepare(directory: Path) -> Path:
    directory.mkdir()
    for line in PREPARE.strip().splitlines():
        subprocess.run(shlex.split(line), cwd=directory, check=True, capture_output=True, timeout=60)
    return directory


def outcome(program: tuple[str, ...], command: str, directory: Path) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, *shlex.split(command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    # Decoded here, for the sake of carriage returns.
    return done.returncode, without_room(done.stdout.decode()), done.stderr.decode()


def without_room(output: str) -> str:
    """Leave out how much room the host gives a file: that is its business."""
    return re.sub(r'(disk size: |"actual-size": )[^,\n]*', r"\1-", output)


@pytest.mark.parametrize("commands", [CREATE, LOOK, CHANGE], ids=["create", "look", "change"])
def test_same_words_and_statuses(
    tmp_path: Path, commands: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = prepare(tmp_path / "ours"), prepare(tmp_path / "theirs")
    monkeypatch.chdir(ours)
    different = []
    for command in commands.strip().splitlines():
        status = main(shlex.split(command))
        captured = capsys.readouterr()
        one = status, without_room(captured.out), captured.err.replace("pyvm-img", "qemu-img")
        other = outcome(("qemu-img",), command, theirs)
        if one != other:
            different.append((command, one, other))
    assert not different, "\n".join(f"{command}\n  pyvm {one}\n  qemu {other}" for command, one, other in different)


@pytest.mark.parametrize("seed", range(3))
def test_random_conversions_agree(tmp_path: Path, seed: int) -> None:
    """What pyvm-img makes, qemu-img finds clean and the same; the other way round as well."""
    chance = random.Random(seed)
    data = bytearray()
    while len(data) < 6 << 20:
        length = chance.choice([512, 4096, 65536, 300_032])
        kind = chance.randrange(3)
        data += bytes(length) if kind == 0 else chance.randbytes(length) if kind == 1 else b"text" * (length // 4)
    (tmp_path / "image0").write_bytes(data)
    formats = ["raw"]
    for number in range(1, 7):
        options = chance.choice(
            [
                "-O raw",
                "-O raw -S 64k",
                "-O qcow2",
                "-O qcow2 -c",
                "-O qcow2 -c -W -o compression_type=zstd",
                "-O qcow2 -o cluster_size=4k",
                "-O qcow2 -o extended_l2=on",
                "-O qcow2 -c -o cluster_size=512k",
                "-O qcow2 -o compat=0.10",
            ]
        )
        program = PYVM_IMG if number % 2 else ("qemu-img",)
        command = f"convert -f {formats[-1]} {options} image{number - 1} image{number}"
        status, output, errors = outcome(program, command, tmp_path)
        assert (status, output, errors) == (0, "", ""), command
        formats.append(options.split()[1])
        compare = f"compare -f raw -F {formats[-1]} image0 image{number}"
        for checker in (PYVM_IMG, ("qemu-img",)):
            assert outcome(checker, compare, tmp_path)[:2] == (0, "Images are identical.\n"), command
            if formats[-1] == "qcow2":
                assert outcome(checker, f"check image{number}", tmp_path)[0] == 0, command
