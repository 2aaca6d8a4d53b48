from hypothesis import given
from hypothesis import strategies as st

from icl_align.alignment.options import Options
from icl_align.config import with_values
from icl_align.running.slices import slice_size


@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from(["cpu", "gpu"]))
def test_a_slice_divides_what_it_is_a_slice_of(num_contexts, most, platform):
    free, bounded = Options(), with_values(Options(), {"devices.slice": most})
    assert num_contexts % slice_size(free, 5, 3, num_contexts, platform) == 0
    bound = slice_size(bounded, 5, 3, num_contexts, platform)
    assert num_contexts % bound == 0 and bound <= most
    assert slice_size(free, 5, 3, num_contexts, "gpu") == num_contexts
