"""A profile holds the steps it was taken of, each operation under the part of a step it is of."""

import collections
import gzip
import json

from icl_align.running.profiling import PARTS, parts_of_operations
from icl_align.running.run import run
from runs import tiny


def test_an_operation_belongs_to_its_innermost_part():
    program = """
  %dot.1 = f32[2,2]{1,0} dot(%a, %b), metadata={op_name="jit(chunk)/jvp(jit(_apply))/mlp/dot"}
  ROOT %add.2 = f32[] add(%c, %d), metadata={stack_frame_id=1 op_name="jit(f)/jvp(loss)/tokens/add"}
  %mul.3 = f32[] multiply(%c, %d), metadata={op_name="jit(f)/transpose(jvp(loss))/mul"}
  %copy.4 = f32[] copy(%c), metadata={op_name="jit(lossless)/mlp_width/copy"}
  %copy.5 = f32[] copy(%c)
"""
    assert parts_of_operations(program) == {"dot.1": "mlp", "add.2": "tokens", "mul.3": "loss"}


def test_a_run_leaves_a_profile_with_the_parts_of_a_step(tmp_path):
    run(tiny("devices.profile=true", "train.steps=12", "wandb.mode=disabled"), tmp_path / "run")
    [trace] = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    assert list(trace.parent.glob("*.xplane.pb"))  # what XProf reads
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    times = collections.Counter()
    for event in events:
        if "part" in event.get("args", {}):
            assert event["name"].startswith(event["args"]["part"] + ": ")
            times[event["args"]["part"]] += event["dur"]
    assert set(times) == set(PARTS)
    assert min(times.values()) > 0
