"""What can be wrong is said before the work: file names that a system can't hold."""

import sys
from types import SimpleNamespace

import pytest

from vpl.errors import RunError
from vpl.runs import checks


def windows(monkeypatch, long_paths: int | None) -> None:
    """As on a Windows whose registry says so; None: it says nothing."""

    class Key:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def value(*_):
        if long_paths is None:
            raise FileNotFoundError
        return long_paths, 4

    registry = SimpleNamespace(HKEY_LOCAL_MACHINE=0, OpenKey=lambda *_: Key(), QueryValueEx=value)
    monkeypatch.setitem(sys.modules, "winreg", registry)
    monkeypatch.setattr(checks, "WINDOWS", True)


@pytest.mark.parametrize("long_paths", [0, None])
def test_a_name_that_windows_can_not_hold_is_told_before_the_work(tmp_path, monkeypatch, long_paths):
    windows(monkeypatch, long_paths)
    room = checks.LONGEST_PATH - len(str(tmp_path.absolute() / "seeds/refined/.png.partial")) - 1
    checks.check_lengths(tmp_path, ["a", "b" * (room - 20)])
    with pytest.raises(RunError, match=r"and Windows allows 259; name a run folder with a shorter name"):
        checks.check_lengths(tmp_path, ["a", "b" * (room + 20)])


def test_long_paths_and_other_systems_hold_it(tmp_path, monkeypatch):
    checks.check_lengths(tmp_path, ["b" * 300])
    windows(monkeypatch, 1)
    checks.check_lengths(tmp_path, ["b" * 300])
