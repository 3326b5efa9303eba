"""The options of every method, as a recipe gives them. A new method is tested here, unasked."""

from __future__ import annotations

import inspect

import pytest

from mtnlp import balancers, config, samplers, strategies
from mtnlp.config import Slot
from mtnlp.errors import RecipeError

METHODS = [(room, name) for room in (strategies, samplers, balancers) for name in room.names()]
every = pytest.mark.parametrize(("room", "name"), METHODS, ids=[name for _, name in METHODS])


@every
def test_an_option_that_it_does_not_have_is_refused_with_its_place(room, name):
    with pytest.raises(RecipeError) as refused:
        config.build("some.slot", Slot(name, {"no_such_option": 1}), room)

    assert any(p.startswith("some.slot.no_such_option: no such option.") for p in refused.value.problems)


@every
def test_options_are_keywords_and_named_in_its_docstring(room, name):
    method = room.get(name)

    for option in inspect.signature(method).parameters.values():
        assert option.kind is option.KEYWORD_ONLY
        assert option.name in method.__doc__
