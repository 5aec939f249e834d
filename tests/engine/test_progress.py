"""Progress: the same events in a terminal, a notebook and a log."""

from __future__ import annotations

import io
import sys
import types

import pytest

from geoeco.engine.progress import NotebookProgress, PlainLines, TerminalProgress, progress_for


def test_the_display_fits_the_place(monkeypatch):
    assert isinstance(progress_for(io.StringIO()), PlainLines)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert isinstance(progress_for(terminal), TerminalProgress)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert isinstance(progress_for(terminal), NotebookProgress)


@pytest.mark.parametrize("kind", [TerminalProgress, NotebookProgress])
def test_bars_show_faults_and_the_end(kind, switches, make_recipe, tmp_path, capfd):
    (switches / "bad.t1").touch()
    (switches / "transient.t2").write_text("1")
    run = make_recipe().run(tmp_path / "out", gdal={}, backoff=0.0, subscribers=[kind()])
    shown = "".join(capfd.readouterr())
    assert run.exit_code == 3
    for text in ("quarantined", "the file is no raster", "the server is busy", "partial after", "make"):
        assert text in " ".join(shown.split()), text


def test_long_steps_are_a_line_for_each_tenth(switches, make_recipe, tmp_path):
    stream = io.StringIO()
    make_recipe("[{verb: make, count: 40}]").run(tmp_path / "out", gdal={}, subscribers=[PlainLines(stream)])
    assert stream.getvalue().count(" of 40") == 9


def test_nothing_is_shown_where_nobody_watches(switches, make_recipe, tmp_path, capfd):
    make_recipe().run(tmp_path / "out", gdal={})
    assert capfd.readouterr() == ("", "")
