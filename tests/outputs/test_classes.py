from __future__ import annotations

import pytest

from geoeco.errors import InputError
from geoeco.outputs import ClassEntry, ClassTable


def test_a_table_is_sorted_by_code_and_keeps_its_colours():
    table = ClassTable.of({7: "water", 2: "wood"}, {7: "#0000ff", 2: (10, 20, 30)}, name="cover")
    assert table.codes == (2, 7)
    assert table.names == ("wood", "water")
    assert [entry.colour for entry in table] == [(10, 20, 30, 255), (0, 0, 255, 255)]


def test_names_alone_are_numbered_from_one_and_get_distinct_colours():
    table = ClassTable.of([f"class {n}" for n in range(40)])
    assert table.codes == tuple(range(1, 41))
    assert len({entry.hex for entry in table}) == 40


def test_cf_flags_round_trip(raster):
    table = ClassTable.of({1: "beech wood", 4: "open water"}, name="cover")
    array = raster([[1, 4]], kind="class", long_name="cover").assign_attrs(table.to_attrs())
    assert ClassTable.from_attrs(array) == table


def test_names_with_underscores_are_themselves_and_those_of_others_have_blanks(raster):
    table = ClassTable.of({1: "Built_up", 4: "Built up"}, name="cover")
    array = raster([[1, 4]], kind="class", long_name="cover").assign_attrs(table.to_attrs())
    assert array.attrs["flag_meanings"] == "Built_up Built_up"
    assert ClassTable.from_attrs(array) == table
    others = array.assign_attrs(flag_meanings="bare_ground open_water")
    assert ClassTable.from_attrs(others).names == ("bare ground", "open water")


def test_a_variable_without_flags_has_no_table(raster):
    assert ClassTable.from_attrs(raster([[1, 4]], kind="class")) is None


@pytest.mark.parametrize(
    ("names", "colours"),
    [
        ({}, None),
        ({1: "a", 2: "a"}, None),
        ({-1: "a"}, None),
        ({65535: "a"}, None),
        ({1.5: "a"}, None),
        ({1: " "}, None),
        ({1: "a\x02"}, None),
        ({1: "a\ufffe"}, None),
        ({1: "a\ud800"}, None),
        ({1: "a  b", 2: "a b"}, None),
        ({1: "a"}, {1: "blue"}),
        ({1: "a"}, {1: (1, 2, 300)}),
        ({1: "a", 2: "b"}, ["#000000"]),
    ],
)
def test_wrong_tables_are_refused(names, colours):
    with pytest.raises(InputError):
        ClassTable.of(names, colours)


def test_a_code_twice_is_refused():
    with pytest.raises(InputError, match="same code twice: 1"):
        ClassTable((ClassEntry(1, "a", (0, 0, 0, 255)), ClassEntry(1, "b", (0, 0, 0, 255))))


def test_flags_of_unequal_length_are_refused(raster):
    array = raster([[1]], kind="class", flag_values=[1, 2], flag_meanings="only_one")
    with pytest.raises(InputError, match="2 flag_values and 1 flag_meanings"):
        ClassTable.from_attrs(array)
