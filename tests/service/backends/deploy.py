"""Put a configuration of Ray Serve on a cluster, as ``serve deploy`` does where there is a dashboard.

python deploy.py CONFIG.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

if __name__ == "__main__":
    ray.init()
    _get_global_client().deploy_apps(ServeDeploySchema(**json.loads(Path(sys.argv[1]).read_text())))
