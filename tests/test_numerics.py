"""The bounds that `docs/numerics.md` publishes hold."""

import pytest

from tests import numerics
from tests.rules import RULES, pairs


@pytest.fixture(scope="module")
def bounds():
    return numerics.published()


def test_every_rule_reader_and_dtype_has_a_published_bound(bounds):
    assert set(bounds) == {(rule.name, reader, name) for rule, reader in pairs(RULES) for name in numerics.DTYPES}


@pytest.mark.parametrize("dtype", numerics.DTYPES)
@pytest.mark.parametrize(("rule", "reader"), pairs(RULES), ids=str)
def test_hundred_steps_stay_within_the_published_distance_of_the_formula(rule, reader, dtype, bounds):
    assert numerics.distance(rule, reader, numerics.DTYPES[dtype]) <= bounds[rule.name, reader, dtype]
