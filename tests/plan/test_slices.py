"""Names of TPU slices."""

import pytest

from maskvlm_jax.plan import slices
from maskvlm_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "topology", "told"),
    [
        ("v5e-1", 1, 1, "v5e:1x1", "v5e-1"),
        ("v5e-8", 8, 1, "v5e:2x4", "v5e-8"),
        ("v5e-16", 16, 4, "v5e:4x4", "v5e-16"),
        ("v6e-256", 256, 64, "v6e:16x16", "v6e-256"),
        ("v4-32", 16, 4, "v4:2x2x4", "v4-32"),
        ("v5p-128", 64, 16, "v5p:4x4x4", "v5p-128"),
        ("4xv5e-64", 256, 64, "v5e:8x8", "4x v5e-64"),
    ],
)
def test_a_slice_by_its_name(name, chips, hosts, topology, told):
    found = slices.parse(name)
    assert (found.all_chips, found.hosts, found.topology, str(found)) == (chips, hosts, topology, told)


@pytest.mark.parametrize("name", ["v5e", "v5e-7", "v4-4", "h100-8", "0xv5e-8", "v5e-8x2", ""])
def test_a_slice_that_there_is_not_is_told_with_those_there_are(name):
    with pytest.raises(UserError, match=f"--slice={name}: "):
        slices.parse(name)
