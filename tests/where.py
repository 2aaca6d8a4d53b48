"""A Hydra callback that leaves in each job's folder where the job ran; and a Ray cluster of two nodes.

Run as a program, it starts the cluster, prints its address, and stops it when its input ends.
"""

import json
import os
import sys
from pathlib import Path

from hydra.experimental.callback import Callback


class Where(Callback):
    def on_job_end(self, config, **_):
        node = None
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            node = sys.modules["ray"].get_runtime_context().get_node_id()
        where = {"node": node, "cores": sorted(os.sched_getaffinity(0))}
        where["devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        Path(config.hydra.runtime.output_dir, "where.json").write_text(json.dumps(where))


def cluster():
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
    two_nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    two_nodes.add_node(**node)
    print(two_nodes.address, flush=True)
    sys.stdin.read()
    two_nodes.shutdown()


if __name__ == "__main__":
    cluster()
