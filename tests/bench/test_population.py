"""Networks of which only the length of the training differs."""

from dataclasses import replace

import pytest

from deepsanitizer.bench.population import LONGER, SIZES, Group, name_of, recipe_of


@pytest.mark.parametrize(("group", "longer"), [(group, LONGER + group) for group in SIZES if LONGER + group in SIZES])
def test_networks_trained_for_longer_differ_in_nothing_else(group: Group, longer: Group) -> None:
    for number in range(24):
        before, after = recipe_of(group, number), recipe_of(longer, number)
        assert replace(after, epochs=before.epochs, images=before.images) == before
        assert after.images is None
        assert after.epochs >= 2 * before.epochs
        assert name_of(longer, number) == LONGER + name_of(group, number)
