"""Names of methods: files, plug-ins and run-time additions, without importing what nobody asked for."""

import sys
from importlib.metadata import EntryPoint

import pytest

from mtnlp import registry
from mtnlp.errors import MtnlpError
from mtnlp.registry import Registry


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package `zoo` with two methods, two files that are none, and one that must never be imported."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from mtnlp.registry import Registry\nanimals = Registry('zoo', 'animal')\n"
    )
    (folder / "base.py").write_text("")
    (folder / "_helpers.py").write_text("")
    (folder / "grey_wolf.py").write_text(
        '"""Hunts in packs.\n\nSource: zoology.\n"""\nfrom zoo import animals\n'
        '@animals.register("grey-wolf")\nclass GreyWolf:\n    pass\n'
    )
    (folder / "bear.py").write_text('"""Sleeps."""\nraise RuntimeError("woken")\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("zoo").animals
    for name in [name for name in sys.modules if name.split(".")[0] == "zoo"]:
        del sys.modules[name]


def test_files_are_names_and_listing_imports_none(room):
    assert room.names() == ["bear", "grey-wolf"]
    assert room.summary("bear") == "Sleeps."
    assert room.summary("grey-wolf") == "Hunts in packs."
    assert "zoo.grey_wolf" not in sys.modules


def test_a_name_imports_its_own_file_only(room):
    assert room.get("grey-wolf").__name__ == "GreyWolf"
    assert "zoo.bear" not in sys.modules


def test_an_unknown_name_suggests_the_nearest(room):
    with pytest.raises(MtnlpError, match=r"No animal is called 'gray-wolf'. Did you mean 'grey-wolf'\?"):
        room.get("gray-wolf")


def test_another_object_under_the_same_name_is_refused_with_both_places(room):
    room.get("grey-wolf")

    with pytest.raises(
        MtnlpError, match=r"registered twice: .*grey_wolf\.py:\d+ and .*test_registry\.py:\d+"
    ):

        @room.register("grey-wolf")
        class Other:
            pass


def test_an_added_name_is_listed_and_found(room):
    @room.register("owl")
    class Owl:
        """Flies at night."""

    assert "owl" in room.names()
    assert room.get("owl") is Owl
    assert room.summary("owl") == "Flies at night."


def test_a_plug_in_is_loaded_when_it_is_asked_for(room, monkeypatch):
    points = [
        EntryPoint("lynx", "collections:OrderedDict", "zoo"),
        EntryPoint("gone", "no.such.module:X", "zoo"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [p for p in points if p.group == group])

    assert room.names() == ["bear", "gone", "grey-wolf", "lynx"]
    assert room.get("lynx").__name__ == "OrderedDict"


def test_a_room_that_is_not_imported_yet_lists_its_files():
    assert "pcgrad" in Registry("mtnlp.balancers", "balancer").names()
