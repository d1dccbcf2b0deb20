"""The benchmarks without an emulator: medians, verdicts, chapters, and the programs and images they work with."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import boot_chapter, convert_chapter, disk_chapter, report
from benchmarks.chapter import Chapter, Metric, Sample, Setting, SkippedError
from benchmarks.chapters import CHAPTERS, METRICS
from benchmarks.machine import BenchmarkError, Emulator, seconds_to_text
from images.build import BuildError, compile_static

MIB = 1 << 20


def sample(**figures: float) -> Sample:
    return {metric.name: 1.0 for metric in METRICS} | figures


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if f"| {title}" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


class TestReport:
    def test_each_figure_has_its_own_median(self) -> None:
        samples = [sample(boot=3, idle=0.1), sample(boot=1, idle=0.3), sample(boot=2, idle=0.2)]
        medians = report.medians(samples)
        assert medians["boot"] == 2
        assert medians["idle"] == 0.2

    def test_the_mean_is_geometric_and_of_the_guest_benchmarks_only(self) -> None:
        first = sample(boot=100, **{"micro.integer": 4.0, "micro.pipe": 0.25, "micro.fork": 512.0})
        assert report.mean_ratio(first, sample()) == pytest.approx(512 ** (1 / 9))

    @pytest.mark.parametrize(
        ("figure", "value", "title", "verdict"),
        [
            ("boot", 0.99, "boot to", "ok"),
            ("boot", 1.01, "boot to", "MISSED"),
            ("pings", 0.5, "agent round trips", "ok"),
            ("pings", 0.49, "agent round trips", "MISSED"),
            ("greeting", 0.2, "start of -S", "ok"),
            ("greeting", 0.21, "start of -S", "MISSED"),
            ("idle", 0.029, "processor use", "ok"),
            ("idle", 0.031, "processor use", "MISSED"),
            ("disk_read.raw", 0.8, "raw: sequential read", "ok"),
            ("disk_write.qcow2", 0.79, "qcow2: sequential write", "MISSED"),
            ("disk_random.qcow2", 0.79, "qcow2: random reads", "MISSED"),
            ("convert.raw_qcow2", 1.0, "convert raw to qcow2", "ok"),
            ("convert.compress", 1.01, "convert -c", "MISSED"),
            ("disk_boot", 1.2, "Debian disk to the login", "ok"),
            ("disk_boot", 1.21, "Debian disk to the login", "MISSED"),
        ],
    )
    def test_targets_are_judged(self, figure: str, value: float, title: str, verdict: str) -> None:
        text = report.table(("pyvm", "QEMU"), sample(**{figure: value}), sample())
        assert row(text, title)[-1] == verdict

    def test_figures_are_shown_in_their_units(self) -> None:
        first = sample(**{"resident": 200 * 2**20, "disk_read.raw": 1.3e9, "disk_random.raw": 2900.4})
        second = sample(**{"resident": 250 * 2**20, "disk_read.raw": 1e9, "disk_random.raw": 2900.4})
        text = report.table(("pyvm", "QEMU"), first, second)
        assert row(text, "resident memory")[1:5] == ["MiB", "200", "250", "0.80"]
        assert row(text, "raw: sequential read")[1:5] == ["MB/s", "1,300", "1,000", "1.30"]
        assert row(text, "raw: random reads")[1:5] == ["/s", "2,900", "2,900", "1.00"]

    def test_the_table_is_markdown(self) -> None:
        lines = report.table(("pyvm", "QEMU"), sample(), sample()).splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) == {"|", "-"}

    def test_only_what_was_measured_is_shown(self) -> None:
        medians = report.medians([{"disk_boot": 30.0}])
        assert medians == {"disk_boot": 30.0}
        assert report.mean_ratio(medians, medians) is None
        lines = report.table(("pyvm", "QEMU"), medians, medians).splitlines()
        assert [line.split("|")[1].strip() for line in lines[2:]] == ["Debian disk to the login prompt"]


def counting(name: str, calls: list[str]) -> Chapter:
    """Return a chapter that notes who is measured."""

    def prepare(setting: Setting) -> command.Measure:
        assert setting.directory.is_dir()

        def measure(emulator: Emulator) -> Sample:
            calls.append(f"{name} {emulator.name}")
            return {f"figure.{name}": float(len(calls))}

        return measure

    return Chapter(name, f"about {name}", (Metric(f"figure.{name}", f"figure {name}", "s", relative=1.0),), prepare)


class TestChapters:
    def test_names_of_chapters_and_figures_are_unique(self) -> None:
        assert len({chapter.name for chapter in CHAPTERS}) == len(CHAPTERS)
        assert len({metric.name for metric in METRICS}) == len(METRICS)
        assert len({metric.title for metric in METRICS}) == len(METRICS)

    def test_every_figure_has_one_target(self) -> None:
        assert [metric.name for metric in METRICS if (metric.relative is None) == (metric.absolute is None)] == []

    def test_an_unknown_chapter_is_refused_by_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            command.main(["dusk"])
        assert "no chapter dusk: there are machine, monitor, disk, convert, boot" in capsys.readouterr().err

    def test_emulators_take_turns_and_none_is_always_the_first(self, tmp_path: Path) -> None:
        calls: list[str] = []
        chapters = [counting("x", calls), counting("y", calls)]
        measures, skipped = command._prepared(chapters, Setting(tmp_path))
        emulators = Emulator("A", ("a",)), Emulator("B", ("b",))
        samples = command._samples(measures, emulators, 2)
        assert skipped == {}
        assert calls == ["x A", "x B", "y A", "y B", "x B", "x A", "y B", "y A"]
        assert samples == {
            "A": [{"figure.x": 1.0, "figure.y": 3.0}, {"figure.x": 6.0, "figure.y": 8.0}],
            "B": [{"figure.x": 2.0, "figure.y": 4.0}, {"figure.x": 5.0, "figure.y": 7.0}],
        }

    def test_a_chapter_that_cannot_be_measured_is_left_out_with_its_reason(self, tmp_path: Path) -> None:
        def refuse(setting: Setting) -> command.Measure:
            raise SkippedError(f"nothing in {setting.directory.name}")

        calls: list[str] = []
        chapters = [dataclasses.replace(counting("x", calls), prepare=refuse), counting("y", calls)]
        measures, skipped = command._prepared(chapters, Setting(tmp_path))
        assert list(measures) == ["y"]
        assert skipped == {"x": f"nothing in {tmp_path.name}"}

    def test_a_disk_that_cannot_be_built_is_such_a_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise BuildError("run this as root")

        monkeypatch.setattr(boot_chapter, "build_disk", refuse)
        assert command._prepared([boot_chapter.CHAPTER], Setting(tmp_path)) == ({}, {"boot": "run this as root"})


class TestEmulators:
    """With programs that are none."""

    SCRIPT = "import sys; open(sys.argv[sys.argv.index('-serial') + 1][5:], 'w').write('Debian\\nhost login: ')"

    def test_the_text_on_the_console_is_waited_for(self, tmp_path: Path) -> None:
        stays = Emulator("x", (sys.executable, "-c", f"{self.SCRIPT}; sys.stdin.close(); __import__('signal').pause()"))
        (tmp_path / "console").write_text("what an earlier machine wrote")
        assert seconds_to_text(stays, ("-m", "1"), tmp_path / "console", b" login: ", 60) > 0
        assert (tmp_path / "console").read_text() == "Debian\nhost login: "

    def test_an_emulator_that_ends_is_an_error(self, tmp_path: Path) -> None:
        ends = Emulator("x", (sys.executable, "-c", "raise SystemExit(3)"))
        with pytest.raises(BenchmarkError, match="the emulator ended with status 3"):
            seconds_to_text(ends, (), tmp_path / "console", b" login: ", 60)

    def test_a_text_that_does_not_come_is_an_error(self, tmp_path: Path) -> None:
        stays = Emulator("x", (sys.executable, "-c", "__import__('signal').pause()"))
        with pytest.raises(BenchmarkError, match=r"no ' login: ' in 0\.05 s"):
            seconds_to_text(stays, (), tmp_path / "console", b" login: ", 0.05)


class TestImages:
    @pytest.fixture
    def scattered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
        """The pages with data of a small image; it is the same each time."""
        monkeypatch.setattr(convert_chapter, "GRID", 5 * MIB)
        paths = tmp_path / "a", tmp_path / "b"
        for path in paths:
            convert_chapter.scatter(path, 128 * MIB, 24 * MIB, seed=1)
        assert filecmp.cmp(*paths, shallow=False)
        assert paths[0].stat().st_size == 128 * MIB
        assert paths[0].stat().st_blocks * 512 < 40 * MIB
        image = paths[0].read_bytes()
        pages = (image[place : place + 4096] for place in range(0, len(image), 4096))
        return b"".join(page for page in pages if page != bytes(4096))

    def test_scattered_data_is_as_much_as_asked_for(self, scattered: bytes) -> None:
        assert 24 * MIB <= len(scattered) < 24 * MIB + max(convert_chapter.PIECES)

    def test_scattered_data_can_be_compressed_in_part(self, scattered: bytes) -> None:
        assert 0.5 < len(zlib.compress(scattered[: 16 * MIB], 1)) / (16 * MIB) < 0.95

    def test_a_copy_keeps_its_holes(self, tmp_path: Path) -> None:
        master = tmp_path / "master.raw"
        with master.open("wb") as file:
            file.write(b"x" * MIB)
            file.truncate(64 * MIB)
        (tmp_path / "disk.raw").write_bytes(b"an earlier guest's")
        copy = disk_chapter._fresh_copy(tmp_path, "raw")
        assert copy.read_bytes() == master.read_bytes()
        assert copy.stat().st_blocks * 512 < 8 * MIB

    @pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
    def test_every_conversion_is_one_that_qemu_img_knows(self, tmp_path: Path) -> None:
        for name, size in (("raw", MIB), ("small.raw", MIB)):
            convert_chapter._source(tmp_path, name).write_bytes(os.urandom(size // 2) + bytes(size // 2))
        for prefix in ("", "small."):
            raw, qcow2 = (convert_chapter._source(tmp_path, prefix + kind) for kind in ("raw", "qcow2"))
            convert_chapter._qemu_img("convert", "-O", "qcow2", "-f", "raw", raw, qcow2)
        for name, kind, options in convert_chapter.CONVERSIONS.values():
            source, target = convert_chapter._source(tmp_path, name), tmp_path / "target"
            assert convert_chapter._seconds(("qemu-img",), source, target, kind, options) > 0
            shown = subprocess.run(["qemu-img", "info", "--output=json", target], capture_output=True, check=True)
            assert json.loads(shown.stdout)["format"] == kind

    def test_a_conversion_that_fails_is_an_error(self, tmp_path: Path) -> None:
        tool = (sys.executable, "-c", "raise SystemExit('no such image')")
        source = tmp_path / "source.raw"
        source.write_bytes(b"data")
        with pytest.raises(BenchmarkError, match="no such image"):
            convert_chapter._seconds(tool, source, tmp_path / "target", "raw", ())


@pytest.fixture(scope="module")
def diskio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("diskio") / "diskio"
    try:
        program.write_bytes(compile_static(Path(disk_chapter.__file__).with_name("diskio.c")))
    except BuildError as error:
        pytest.skip(str(error))
    program.chmod(0o755)
    return program


class TestDiskio:
    """The guest's program, on the host and a file."""

    LENGTH = 4 * MIB

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Path:
        path = tmp_path / "disk"
        path.write_bytes(bytes(2 * self.LENGTH))
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("the file system has no O_DIRECT")
        return path

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)

    def test_reading_changes_nothing(self, diskio: Path, disk: Path) -> None:
        for words in (("read", disk, 0, self.LENGTH, 2), ("random", disk, self.LENGTH, 0.01)):
            done = self._run(diskio, *words)
            assert done.returncode == 0, done.stderr
            assert float(done.stdout) > 0
        assert disk.read_bytes() == bytes(2 * self.LENGTH)

    def test_writing_covers_just_the_range(self, diskio: Path, disk: Path) -> None:
        done = self._run(diskio, "write", disk, MIB, self.LENGTH, 2)
        assert float(done.stdout) > 0
        data = disk.read_bytes()
        assert data[MIB : MIB + self.LENGTH] == b"\xa5" * self.LENGTH
        assert data[:MIB] + data[MIB + self.LENGTH :] == bytes(self.LENGTH)

    def test_the_end_of_the_disk_is_an_error(self, diskio: Path, disk: Path) -> None:
        done = self._run(diskio, "read", disk, self.LENGTH, 2 * self.LENGTH, 1)
        assert (done.returncode, done.stderr) == (1, "diskio: read: the disk ends there\n")

    @pytest.mark.parametrize("words", [(), ("read", "x"), ("erase", "x", 0, 1, 1), ("random", "x", 1, 1, 1)])
    def test_other_words_are_refused(self, diskio: Path, words: tuple[object, ...]) -> None:
        assert self._run(diskio, *words).returncode == 2
